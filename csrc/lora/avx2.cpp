#define BDC_ADD add_avx2
#define BDC_LANES 8
#define BDC_ROWS 2
#include "kernel.inc"
