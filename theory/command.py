"""minimal-nn audit: the audit of a PyTorch model without a line of code.

    minimal-nn audit timm:resnet18                       a model of timm, with random weights
    minimal-nn audit torchvision:resnet18
    minimal-nn audit "package.module:Factory(width=8)"   what a function or class of yours returns

Nothing is downloaded: weights, inputs and labels are random.  Inputs that are not described are
tried out, small ones first.
"""

import argparse
import ast
import copy
import importlib
import json
import math
import os
import sys
from typing import Any, NamedTuple

from minimal_nn.command import suggestion
from minimal_nn.files import check_new, path_of, whole_file

SCHEMA = 1  # of --json: raised where a key changes its meaning or goes
_LENGTHS = (16, 8, 32)  # of sequences that are tried out
_OPTIMIZERS = ("SGD", "Adam", "AdamW")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    p = argparse.ArgumentParser(
        prog="minimal-nn audit",
        description="Which weights of a PyTorch model are scale-invariant, and what its optimizer "
        "makes of them; then where weight decay does not do what it is there for.",
    )
    p.add_argument(
        "target",
        metavar="MODEL",
        help='timm:NAME, torchvision:NAME, or "package.module:Factory(width=8)"',
    )
    p.add_argument("--input", metavar="3x32x32", help="an example's shape (default: tried out)")
    p.add_argument("--tokens", type=int, metavar="N", help="inputs are integers below N")
    p.add_argument("--batch", type=int, default=8, help="how many examples (default 8)")
    p.add_argument("--optimizer", default="SGD", choices=_OPTIMIZERS, help="default SGD")
    p.add_argument("--lr", type=float, default=0.1, help="its learning rate (default 0.1)")
    p.add_argument("--momentum", type=float, default=0.0, help="SGD's (default 0)")
    p.add_argument("--weight-decay", type=float, default=0.0, help="default 0")
    p.add_argument("--eval", action="store_true", help="evaluation mode, not training")
    p.add_argument("--seed", type=int, default=0, help="of weights and inputs (default 0)")
    p.add_argument("--json", metavar="FILE", help="write the figures to FILE, or - for stdout")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status: 0 where the model was audited."""
    options = parser().parse_args(arguments)
    try:
        _check(options)
        report, batch = _audited(options)
    except (ImportError, AttributeError, ValueError, TypeError, OSError) as error:
        print(f"minimal-nn audit: {error}", file=sys.stderr)
        return 2
    from theory.yours.decay import lint_decay

    findings = lint_decay(report)
    if options.json == "-":
        print(json.dumps(_as_dict(options, batch, report, findings), indent=1))
        return 0
    print(f"{options.target}: {batch.text}")
    print(report)
    print("\n".join(_in_words(findings)))
    if options.json:
        try:
            with whole_file(path_of("--json", options.json), "w") as file:
                json.dump(_as_dict(options, batch, report, findings), file, indent=1)
        except OSError as error:
            print(f"minimal-nn audit: --json: {error}", file=sys.stderr)
            return 2
    return 0


def _in_words(findings):
    """Yield the lines of findings, those of one sentence together."""
    together: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        names = together.setdefault((finding.kind, finding.sentence), [])
        names.append(" with ".join(finding.parameters))
    for (kind, sentence), names in together.items():
        yield f"{kind}: {sentence}"
        yield f"    {', '.join(names)}"


def _check(options):
    """Refuse, before anything is made, options that no audit can have."""
    if options.batch < 2:
        raise ValueError(f"--batch: got {options.batch}, expected at least 2 examples")
    if options.input is not None:
        _shape(options.input)
    if options.tokens is not None and options.tokens < 1:
        raise ValueError(f"--tokens: got {options.tokens}, expected an integer >= 1")
    if not 0 <= options.seed < 2**63:
        raise ValueError(f"--seed: got {options.seed}, expected an integer from 0 to below 2^63")
    for name in ("lr", "weight_decay"):
        value = getattr(options, name)
        if not 0 <= value < math.inf:
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: got {value:g}, expected a finite number >= 0")
    if not 0 <= options.momentum < 1:
        raise ValueError(f"--momentum: got {options.momentum:g}, expected from 0 to below 1")
    if options.momentum and options.optimizer != "SGD":
        raise ValueError(
            f"--momentum: got {options.momentum:g} with {options.optimizer}, expected SGD, which "
            "alone has it"
        )
    if options.json not in (None, "-"):
        check_new("--json", path_of("--json", options.json))


def _audited(options):
    torch = _imported("torch", "torch")
    torch.manual_seed(options.seed)
    model = model_of(options.target)
    model.train(not options.eval)
    batch = batch_of(model, options)
    import theory.torch

    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{options.target}: got a model without trained parameters, expected some")
    own = {"momentum": options.momentum} if options.optimizer == "SGD" else {}
    optimizer = getattr(torch.optim, options.optimizer)(
        trained, lr=options.lr, weight_decay=options.weight_decay, **own
    )
    count = sum(p.numel() for p in model.parameters())
    print(f"auditing {options.target}: {count:,} parameters, {batch.text}", file=sys.stderr)
    from tqdm.auto import tqdm

    with tqdm(unit=" evaluations", disable=None, leave=False) as bar:

        def loss(outputs, y):
            bar.update()
            return batch.loss(outputs, y)

        return theory.torch.audit(model, loss, batch.X, batch.y, optimizer), batch


def _imported(package, install):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if error.name != package:
            raise
        raise ImportError(
            f"the package {package} is not installed; install it with: "
            f"{sys.executable} -m pip install {install}"
        ) from None


# The model


def model_of(target: str) -> Any:
    """Return the torch.nn.Module that a target of the command line names, with random weights."""
    source, colon, name = target.partition(":")
    if not colon or not source or not name:
        raise ValueError(
            f"MODEL: got {target!r}, expected timm:NAME, torchvision:NAME or package.module:Factory"
        )
    if source in ("timm", "torchvision"):
        return _listed(source, name)
    made = _own(source, name)
    torch = _imported("torch", "torch")
    if not isinstance(made, torch.nn.Module):
        raise TypeError(
            f"{target}: got a {type(made).__name__}, expected a torch.nn.Module; a loss with its "
            "gradients in any library is audited by theory.audit"
        )
    return made


def _listed(source, name):
    library = _imported(source, source)
    models = library.models if source == "torchvision" else library
    known = models.list_models()
    if name not in known and name.partition(".")[0] not in known:
        raise ValueError(f"{source}:{name}: {source} has no such model{suggestion(name, known)}")
    if source == "timm":
        return library.create_model(name, pretrained=False)
    return models.get_model(name, weights=None)


def _own(module, name):
    """Return what a name in one's own module is, or what it returns if it is called."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # behind what is installed
    name, keywords = _call(name)
    value = importlib.import_module(module)
    for part in name.split("."):
        if not hasattr(value, part):
            near = suggestion(part, vars(value))
            raise AttributeError(f"{module}: got no {name!r} in it{near}, expected a function")
        value = getattr(value, part)
    made = value if hasattr(value, "parameters") and not isinstance(value, type) else None
    return value(**keywords) if made is None else made


def _call(text):
    """Return the name and the arguments of "Factory" or "Factory(width=8)", all literals."""
    try:
        tree = ast.parse(text, mode="eval").body
        if isinstance(tree, ast.Call) and not tree.args:
            keywords = {item.arg: ast.literal_eval(item.value) for item in tree.keywords}
            return ast.unparse(tree.func), keywords
        if isinstance(tree, (ast.Name, ast.Attribute)):
            return text, {}
    except (SyntaxError, ValueError):
        pass
    raise ValueError(
        f"MODEL: got {text!r} behind the colon, expected Factory, or Factory(width=8) with numbers "
        "and strings by name"
    )


# Its batch


class Batch(NamedTuple):
    """Random inputs and targets that a model takes, and its loss on them.

    text: what they are, in words.
    """

    X: Any
    y: Any
    loss: Any
    text: str


def _shape(text):
    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"--input: got {text!r}, expected an example's shape such as 3x32x32")
    return shape


def batch_of(model: Any, options: argparse.Namespace) -> Batch:
    """Return the Batch that is described, or the first that a model takes."""
    import torch

    described = options.input is not None
    shapes = [(_shape(options.input), options.tokens)] if described else _likely(model, options)
    reasons = []
    for shape, tokens in shapes:
        full = (options.batch, *shape)
        try:
            X = torch.randint(tokens, full) if tokens else torch.randn(full)
            with torch.no_grad():
                outputs = _tensor(copy.deepcopy(model)(X))
        except Exception as error:  # what a foreign model raises for another shape
            reasons.append(f"{'x'.join(map(str, shape))}: {str(error).splitlines()[0][:90]}")
            continue
        found = _targets(outputs, bool(tokens))
        kind = f"integers below {tokens}" if tokens else "normal numbers"
        how = "" if described else ", tried out"
        text = f"{'x'.join(map(str, full))} {kind}{how}; {found[2]}"
        return Batch(X, found[0], found[1], text)
    reason = reasons[-1] if reasons else "no layer says what it takes"
    raise ValueError(
        f"{options.target}: no input was found that it takes ({reason}); describe one: --input "
        "3x32x32, or --input 16 --tokens 100 for 16 integers below 100"
    )


def _likely(model, options):
    """Return the (shape, tokens) that a model may take, by its first layer, small ones first."""
    import torch

    if options.tokens:
        if not any(isinstance(part, torch.nn.Embedding) for part in model.modules()):
            raise ValueError(
                f"--tokens: got {options.tokens}, but {options.target} has no torch.nn.Embedding, "
                "expected one, or --input beside it, such as --input 16 for 16 integers"
            )
        return [((length,), options.tokens) for length in _LENGTHS]
    config = getattr(model, "default_cfg", None) or {}
    declared = [config["input_size"]] if "input_size" in config else []
    images = [(32, 32), (64, 64), (224, 224), (299, 299)]
    for part in model.modules():
        if isinstance(part, torch.nn.Embedding):
            return [((length,), part.num_embeddings) for length in _LENGTHS]
        if isinstance(part, torch.nn.Conv2d):
            return [((part.in_channels, *size), None) for size in images] + [
                (tuple(shape), None) for shape in declared
            ]
        if isinstance(part, torch.nn.Conv1d):
            return [((part.in_channels, size), None) for size in (32, 256, 4096)]
        if isinstance(part, torch.nn.Conv3d):
            return [((part.in_channels, 8, size, size), None) for size in (16, 32, 112)]
        if isinstance(part, torch.nn.Linear):
            width = part.in_features
            side = round((width / 3) ** 0.5)
            return [((width,), None), ((8, width), None), ((3, side, side), None)]
    return []


def _tensor(outputs):
    """Return the first tensor of what a model returned."""
    import torch

    while not isinstance(outputs, torch.Tensor):
        outputs = next(iter(outputs.values() if hasattr(outputs, "values") else outputs))
    return outputs


def _targets(outputs, tokens):
    """Return targets for a model's outputs, a loss, and what it is in words."""
    import torch
    from torch.nn import functional as F

    if outputs.ndim == 2 and outputs.shape[1] > 1 or tokens and outputs.ndim == 3:
        classes = outputs.shape[-1]
        y = torch.randint(classes, (outputs.numel() // classes,))

        def cross_entropy(outputs, y):
            return F.cross_entropy(_tensor(outputs).reshape(-1, classes), y)

        return y, cross_entropy, f"cross-entropy with random labels of {classes} classes"

    def mean_square(outputs, y):
        return F.mse_loss(_tensor(outputs), y)

    return torch.randn(outputs.shape), mean_square, "mean squared error with random targets"


def _as_dict(options, batch, report, findings):
    """Return everything as plain JSON values; what is NaN as null."""
    rows = [
        {key: None if value != value else value for key, value in row._asdict().items()}
        for row in report.rows
    ]
    return {
        "schema": SCHEMA,
        "model": options.target,
        "batch": batch.text,
        "optimizer": report.optimizer,
        "mode": list(report.mode),
        "groups": rows,
        "findings": [finding._asdict() for finding in findings],
    }
