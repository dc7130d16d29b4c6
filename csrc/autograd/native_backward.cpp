#include "autograd/native_backward.h"

#include <ATen/ops/alias.h>
#include <torch/csrc/autograd/autograd.h>

namespace tilewright {

variable_list native_backward(const variable_list& inputs, const std::vector<bool>& needs,
                              const variable_list& grad_outputs,
                              const std::function<variable_list(const variable_list&)>& native) {
  const bool create_graph = at::GradMode::is_enabled();
  const at::AutoGradMode replay_is_recorded(true);
  variable_list aliases(inputs.size());
  variable_list wanted;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].defined()) continue;
    // An alias is a new node on top of the input, so the replay's graph ends there and is not confused with the outer
    // one.
    aliases[i] = needs[i] ? at::alias(inputs[i]) : inputs[i];
    if (needs[i] && !aliases[i].requires_grad()) aliases[i].requires_grad_();
    if (needs[i]) wanted.push_back(aliases[i]);
  }
  const variable_list outputs = native(aliases);

  variable_list used_outputs, used_grads;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!grad_outputs[i].defined() || !outputs[i].requires_grad()) continue;
    used_outputs.push_back(outputs[i]);
    used_grads.push_back(grad_outputs[i]);
  }
  variable_list grads;
  if (!used_outputs.empty()) {
    grads = torch::autograd::grad(used_outputs, wanted, used_grads, /*retain_graph=*/true, create_graph,
                                  /*allow_unused=*/true);
  }
  variable_list result(inputs.size());
  size_t next = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].defined() && needs[i] && !grads.empty()) result[i] = grads[next++];
  }
  return result;
}

}  // namespace tilewright
