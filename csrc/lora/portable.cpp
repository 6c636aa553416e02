#define BDC_KERNEL kPortable
#define BDC_NAME "portable"
#define BDC_LANES 4
#define BDC_TOKENS 2
#define BDC_ROWS 2
#include "kernel.inc"
