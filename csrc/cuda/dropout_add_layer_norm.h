// dropout_add_layer_norm on the GPU, over rows of contiguous [rows, cols] matrices:
//   z = residual + x * keep * scale,   y = layer_norm(z)
//   dz = layer_norm's gradient + dsum,   dresidual = dz,   dinput = dz * keep * scale
// z is rounded to T before it is normalised, as by separate ops: y is the norm of the z that the caller sees.
#pragma once
#include "cuda/dropout.h"
#include "cuda/layer_norm.h"

namespace tilewright::gpu {

template <typename T>
struct DropoutAddLayerNormForwardArgs {
  LayerNormForwardArgs<T> norm;  // norm.x is x
  const T* residual;
  T* sum;  // z, or null: not wanted
  Dropout<Acc<T>> dropout;
};

template <typename T>
struct DropoutAddLayerNormBackwardArgs {
  LayerNormBackwardArgs<T> norm;  // norm.x is z, norm.dx dresidual (or null)
  const T* dsum;                  // or null: 0
  T* dinput;                      // null: not wanted
  Dropout<Acc<T>> dropout;
};

template <typename T>
Status dropout_add_layer_norm_forward(const DropoutAddLayerNormForwardArgs<T>& args, const Launch& launch);
template <typename T>
Status dropout_add_layer_norm_backward(const DropoutAddLayerNormBackwardArgs<T>& args, const Launch& launch);

}  // namespace tilewright::gpu
