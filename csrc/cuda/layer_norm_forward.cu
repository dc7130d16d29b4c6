#include "cuda/layer_norm_forward.cuh"

namespace tilewright::gpu {

template <typename T>
Status layer_norm_forward(const LayerNormForwardArgs<T>& args, const Launch& where) {
  return launch_layer_norm_forward(args, MatrixRows<T>{args.x}, where);
}

template Status layer_norm_forward(const LayerNormForwardArgs<float>&, const Launch&);
template Status layer_norm_forward(const LayerNormForwardArgs<double>&, const Launch&);
template Status layer_norm_forward(const LayerNormForwardArgs<BF16>&, const Launch&);
template Status layer_norm_forward(const LayerNormForwardArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu
