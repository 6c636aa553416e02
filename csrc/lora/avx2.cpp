#define BDC_KERNEL kAvx2
#define BDC_NAME "avx2"
#define BDC_LANES 8
#define BDC_TOKENS 4
#define BDC_ROWS 2
#include "kernel.inc"
