// dropout_add_layer_norm backward: layer_norm's kernels (layer_norm_backward.cuh), which hand each element of dz to the
// gradients of residual and x while it is in a register. No launch more than layer_norm's.
#include "cuda/dropout_add_layer_norm.h"

#include "cuda/keep.cuh"
#include "cuda/layer_norm_backward.cuh"

namespace tilewright::gpu {
namespace {

template <typename T>
struct DropoutAddGradients {
  const T* dsum;
  T *dresidual, *dinput;
  Dropout<Acc<T>> dropout;

  static constexpr bool kLight = false;  // the rounds of Philox
  TILEWRIGHT_HOST_DEVICE bool wanted() const { return dresidual != nullptr || dinput != nullptr; }
  template <int kVec>
  bool aligned(int64_t cols) const {
    return is_aligned<kVec>(dsum, cols) && is_aligned<kVec>(dresidual, cols) && is_aligned<kVec>(dinput, cols);
  }

  class Writer {
   public:
    __device__ __forceinline__ explicit Writer(const DropoutAddGradients& gradients)
        : dsum_(gradients.dsum), dresidual_(gradients.dresidual), dinput_(gradients.dinput), keep_(gradients.dropout) {}

    template <int N>
    __device__ __forceinline__ void write(int64_t at, Acc<T> (&dz)[N]) const {
      Acc<T> other[N];
      if (dsum_ != nullptr) {
        load<N>(dsum_ + at, other);
#pragma unroll
        for (int i = 0; i < N; ++i) dz[i] += other[i];
      }
      if (dresidual_ != nullptr) store<N>(dresidual_ + at, dz);
      if (dinput_ == nullptr) return;
      keep_.factors(at, other);
#pragma unroll
      for (int i = 0; i < N; ++i) dz[i] *= other[i];
      store<N>(dinput_ + at, dz);
    }

   private:
    const T* dsum_;
    T *dresidual_, *dinput_;
    Keep<Acc<T>> keep_;
  };
};

}  // namespace

template <typename T>
Status dropout_add_layer_norm_backward(const DropoutAddLayerNormBackwardArgs<T>& args, const Launch& where) {
  return launch_layer_norm_backward(args.norm,
                                    DropoutAddGradients<T>{args.dsum, args.norm.dx, args.dinput, args.dropout}, where);
}

template Status dropout_add_layer_norm_backward(const DropoutAddLayerNormBackwardArgs<float>&, const Launch&);
template Status dropout_add_layer_norm_backward(const DropoutAddLayerNormBackwardArgs<double>&, const Launch&);
template Status dropout_add_layer_norm_backward(const DropoutAddLayerNormBackwardArgs<BF16>&, const Launch&);
template Status dropout_add_layer_norm_backward(const DropoutAddLayerNormBackwardArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu
