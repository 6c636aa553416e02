#define BDC_ADD add_portable
#define BDC_LANES 4
#define BDC_ROWS 2
#include "kernel.inc"
