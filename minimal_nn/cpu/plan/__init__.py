"""The compiled training loop of a network: `plan`, which `minimal_nn.backend` asks for."""

from minimal_nn.cpu.plan.loop import plan

__all__ = ["plan"]
