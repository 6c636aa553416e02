#define BDC_ADD add_avx512
#define BDC_LANES 16
#define BDC_ROWS 4
#include "kernel.inc"
