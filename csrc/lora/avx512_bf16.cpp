#define BDC_KERNEL kAvx512BFloat16
#define BDC_NAME "avx512_bf16"
#define BDC_LANES 16
#define BDC_TOKENS 4
#define BDC_ROWS 4
#include "kernel.inc"
