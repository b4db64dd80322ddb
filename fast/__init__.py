"""The same functions, faster: packed layouts, packing, the fused head, CUDA kernels and graphs.

Each is held to its plain twin by a test. You can skip it: nothing here changes a result, only how long it
takes.
"""
