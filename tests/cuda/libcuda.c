/* CUDA's driver for tests: whoever asks it for a function gets one that standin.py wrote. */
typedef int finder(const char *name, void **function, int version, unsigned long long flags, int *found);
finder *standin_find;

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *found)
{
	return standin_find(name, function, version, flags, found);
}
