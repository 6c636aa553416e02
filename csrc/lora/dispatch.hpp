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

// Is sum_over_tokens faster than torch's product?
bool sums_pay(const Kernel& kernel);

// Are turned experts multiplied as they lie, rather than turned again, for the tokens of a call?
bool as_they_lie(const Kernel& kernel, const Product& product);

// How A is read for the tokens of a whole call.
Reading reading(const Kernel& kernel, const Product& product);

}  // namespace bdc::lora
