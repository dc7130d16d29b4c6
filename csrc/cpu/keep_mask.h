// What every CPU op with dropout shares: the rule from a seed tensor.
#pragma once
#include "common/philox.h"
#include "cpu/tensors.h"
#include "ops/dropout.h"

namespace tilewright {

inline DropoutRule dropout_rule_of(const Tensor& seed, double p, const char* op) {
  check_dropout_seed(op, seed, at::kCPU, p);
  return dropout_rule(static_cast<uint64_t>(*seed.const_data_ptr<int64_t>()), p);
}

}  // namespace tilewright
