// Which kernel this machine runs.
#pragma once

#include <string>

#include "add.hpp"

namespace bdc::lora {

struct Kernel {
    std::string name;  // portable, avx2 or avx512
    void (*add)(const Product&);
};

// The widest kernel of this CPU, or the one that BDC_CPU_ISA names. Throws std::invalid_argument if
// it can't run here.
Kernel choose();

}  // namespace bdc::lora
