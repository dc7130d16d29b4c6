// dropout_add_layer_norm forward: layer_norm's kernels (layer_norm_forward.cuh) over rows that are made while they are
// read. One launch; x and residual are read once, z is written once where it is wanted. Rows too long for registers
// read z again, or make it again where it is not stored.
#include "cuda/dropout_add_layer_norm.h"

#include "cuda/keep.cuh"
#include "cuda/layer_norm_forward.cuh"

namespace tilewright::gpu {
namespace {

template <typename T>
struct DropoutAddRows {
  const T *x, *residual;
  T* sum;
  Dropout<Acc<T>> dropout;

  static constexpr int kAtOnce = 4;
  template <int kVec>
  bool aligned(int64_t cols) const {
    return is_aligned<kVec>(x, cols) && is_aligned<kVec>(residual, cols) && is_aligned<kVec>(sum, cols);
  }

  class Reader {
   public:
    template <int N>
    struct Raw {
      Pack<T, N> x, residual;
    };

    __device__ __forceinline__ explicit Reader(const DropoutAddRows& rows)
        : x_(rows.x), residual_(rows.residual), sum_(rows.sum), keep_(rows.dropout) {}

    template <int N>
    __device__ __forceinline__ Raw<N> read(int64_t at) const {
      return {load_pack<N>(x_ + at), load_pack<N>(residual_ + at)};
    }
    template <int N>
    __device__ __forceinline__ void first(int64_t at, const Raw<N>& raw, Acc<T> (&z)[N]) const {
      make(at, raw, z);
      if (sum_ != nullptr) store<N>(sum_ + at, z);
    }
    template <int N>
    __device__ __forceinline__ void again(int64_t at, Acc<T> (&z)[N]) const {
      if (sum_ != nullptr) {
        load<N>(sum_ + at, z);
      } else {
        make(at, read<N>(at), z);
      }
    }

   private:
    template <int N>
    __device__ __forceinline__ void make(int64_t at, const Raw<N>& raw, Acc<T> (&z)[N]) const {
      Acc<T> factor[N];
      keep_.factors(at, factor);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        z[i] = widen(narrow<T>(widen(raw.residual.value[i]) + widen(raw.x.value[i]) * factor[i]));
      }
    }

    const T *x_, *residual_;
    T* sum_;
    Keep<Acc<T>> keep_;
  };
};

}  // namespace

template <typename T>
Status dropout_add_layer_norm_forward(const DropoutAddLayerNormForwardArgs<T>& args, const Launch& where) {
  return launch_layer_norm_forward(args.norm, DropoutAddRows<T>{args.norm.x, args.residual, args.sum, args.dropout},
                                   where);
}

template Status dropout_add_layer_norm_forward(const DropoutAddLayerNormForwardArgs<float>&, const Launch&);
template Status dropout_add_layer_norm_forward(const DropoutAddLayerNormForwardArgs<double>&, const Launch&);
template Status dropout_add_layer_norm_forward(const DropoutAddLayerNormForwardArgs<BF16>&, const Launch&);
template Status dropout_add_layer_norm_forward(const DropoutAddLayerNormForwardArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu
