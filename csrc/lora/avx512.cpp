#define BDC_KERNEL kAvx512
#define BDC_NAME "avx512"
#define BDC_LANES 16
#define BDC_TOKENS 4
#define BDC_ROWS 4
#include "kernel.inc"
