// Gradients of gradients, for every op in one place.
//
// A backward that runs with grad mode on (create_graph=True), or is given forward mode's dual numbers, must itself be
// differentiable. Our backward kernels are
// first order, so such a backward replays the op with native's differentiable ops on aliases of the saved inputs and
// asks autograd for their gradients; the result is connected to the inputs and to grad_outputs as native's own would
// be.
#pragma once
#include <functional>

#include "ops/delegate.h"
#include "ops/library.h"

namespace tilewright {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Which of the Function's tensor inputs want a gradient, in order. Autograd numbers only the inputs that were present
// (needs_input_grad(1) is the bias where weight was None), so the presence of each has to be given.
inline std::vector<bool> inputs_needing_grad(const AutogradContext* ctx, std::initializer_list<bool> present) {
  std::vector<bool> needs;
  size_t edge = 0;
  for (const bool is_present : present) needs.push_back(is_present && ctx->needs_input_grad(edge++));
  return needs;
}

// Must this backward be computed by differentiable ops? For gradients of gradients, and where a gradient that came in
// is one that our kernels do not know (a dual number of forward mode, a subclass).
inline bool wants_differentiable(const variable_list& grad_outputs) {
  if (at::GradMode::is_enabled()) return true;
  for (const Tensor& grad : grad_outputs) {
    if (layout_needs_native(grad)) return true;
  }
  return false;
}

// inputs: the saved inputs, undefined where absent. needs: which of them want a gradient.
// native: maps aliases of inputs to the op's outputs, in the order of grad_outputs.
// Returns one gradient per input, undefined where not needed.
variable_list native_backward(const variable_list& inputs, const std::vector<bool>& needs,
                              const variable_list& grad_outputs,
                              const std::function<variable_list(const variable_list&)>& native);

}  // namespace tilewright
