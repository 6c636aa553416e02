// Which kernel this machine runs.
#pragma once

#include "product.hpp"

namespace bdc::lora {

// The widest kernel of this CPU, or the one that BDC_CPU_ISA names. Throws std::invalid_argument if
// it can't run here.
const Kernel& choose();

// The kernel for all tokens of a call.
const Kernel& kernel_for(const Kernel& chosen, const Product& product);

// The order for the tokens of a whole call, however it is cut up, and for each of its outputs: dot
// products with the rows of B where turning B would cost more.
Order order(const Kernel& kernel, const Product& product);

// Does it pay to multiply x in short passes, as `short_passes` says?
bool has_short_passes(const Kernel& kernel, const Product& product);

// Does it pay to multiply one row of A after the other, as `row_by_row` says?
bool goes_row_by_row(const Kernel& kernel, const Product& product);

// Does it pay to turn A for this call, as `turned` says?
bool turns(const Kernel& kernel, const Product& product);

}  // namespace bdc::lora
