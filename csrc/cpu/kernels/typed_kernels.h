// The struct of function pointers that every ISA fills: one member per kernel family, one struct per element type.
// It sees no std header, because the ISA units include it.
#pragma once
#include "common/types.h"
#include "cpu/kernels/activation_args.h"
#include "cpu/kernels/attention_args.h"
#include "cpu/kernels/batch_norm_args.h"
#include "cpu/kernels/conv2d_args.h"
#include "cpu/kernels/dropout_add_layer_norm_args.h"
#include "cpu/kernels/dropout_args.h"
#include "cpu/kernels/layer_norm_args.h"
#include "cpu/kernels/masked_scale_args.h"
#include "cpu/kernels/matmul_args.h"
#include "cpu/kernels/roofline_args.h"
#include "cpu/kernels/widen_args.h"
#include "cpu/kernels/winograd_args.h"

// Each family has kernels/<family>.h with a function fill_<family>(TypedKernels<T>&).
#define TILEWRIGHT_FAMILIES(X) \
  X(activation)                \
  X(attention)                 \
  X(batch_norm)                \
  X(conv2d)                    \
  X(depthwise)                 \
  X(dropout)                   \
  X(dropout_add_layer_norm)    \
  X(layer_norm)                \
  X(masked_scale)              \
  X(matmul)                    \
  X(roofline)                  \
  X(widen)                     \
  X(winograd)

// Those whose bfloat16 kernels differ where the processor multiplies bfloat16.
#define TILEWRIGHT_BF16_FAMILIES(X) \
  X(attention)                      \
  X(conv2d)                         \
  X(matmul)                         \
  X(roofline)

namespace tilewright {

template <typename T>
struct TypedKernels {
  ActivationKernels<T> activation;
  AttentionKernels<T> attention;
  BatchNormKernels<T> batch_norm;
  Conv2dKernels<T> conv2d;
  DepthwiseKernels<T> depthwise;
  DropoutAddLayerNormKernels<T> dropout_add_layer_norm;
  DropoutKernels<T> dropout;
  LayerNormKernels<T> layer_norm;
  MaskedScaleKernels<T> masked_scale;
  MatmulKernels<T> matmul;
  RooflineKernels<T> roofline;
  WidenKernels<T> widen;
  WinogradKernels<T> winograd;
};

struct KernelTable {
  const char* isa;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  TypedKernels<BF16> bf16;
  TypedKernels<F16> f16;
};

}  // namespace tilewright
