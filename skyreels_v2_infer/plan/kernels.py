"""Names of the attention kernels that --attention takes; `modules.attention` has the kernels."""

TORCH_KERNELS = ("cudnn", "flash", "efficient", "math")
KERNELS = ("fa4", *TORCH_KERNELS, "sage")
APPROXIMATE_KERNELS = ("sage",)  # others differ by rounding only
