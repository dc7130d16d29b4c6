// Weight gradient of a depthwise convolution, planes: the sums of all taps of one filter in a thread's registers.
// Neighbouring threads own neighbouring columns of dy, and a thread takes R of its column at once:
//
//   dy      o         R = 4, K = 3, S = 1: 4 reads
//           :
//   x     o o o       (R - 1) * S + K rows of K reads; each meets up to min(R, K) of the thread's dy
//         : : :
//
// A block adds its threads' sums and leaves one partial row of each tap; depthwise.cu adds those.
#include "cuda/depthwise_sums.cuh"

namespace tilewright::gpu {
namespace {

constexpr int kSumRows = 4;

struct PlaneSumTiling {
  Strips rows;
  int64_t columns;  // strips of all images, kSumRows outputs each
  int64_t parts, items;
};

template <typename T, int kKernel, int kStride>
__device__ __forceinline__ void add_column(const DepthwiseWeightArgs<T>& args, const T* dy, const T* x, int y0,
                                           int column, int step_y, Acc<T> (&sums)[kKernel][kKernel],
                                           Acc<T> (&bias)[1]) {
  using A = Acc<T>;
  constexpr int kReach = (kSumRows - 1) * kStride + kKernel;
  const int step_x = computed_anew(args.geometry.dilation[1]);
  step_y = computed_anew(step_y);
  A upstream[kSumRows];
#pragma unroll
  for (int k = 0; k < kSumRows; ++k) {
    const int y = y0 + k * step_y;
    A value[1];
    load_inside<1>(y < args.dy.height, dy + static_cast<int64_t>(y) * args.dy.width + column, value);
    upstream[k] = value[0];
    bias[0] += value[0];
  }
  const int in_y = y0 * kStride - args.geometry.padding[0], in_x = column * kStride - args.geometry.padding[1];
  const int64_t line = static_cast<int64_t>(step_y) * args.x.width;
  const T* row = x + static_cast<int64_t>(in_y) * args.x.width + in_x;
#pragma unroll
  for (int reach = 0; reach < kReach; ++reach) {
    const bool row_inside = is_inside(in_y + reach * step_y, args.x.height);
#pragma unroll
    for (int j = 0; j < kKernel; ++j) {
      A value[1];
      load_inside<1>(row_inside && is_inside(in_x + j * step_x, args.x.width), row + j * step_x, value);
#pragma unroll
      for (int i = reach % kStride; i < kKernel; i += kStride) {
        const int k = (reach - i) / kStride;
        if (i > reach || k >= kSumRows) continue;
        if (k == 0 || y0 + k * step_y < args.dy.height)
          sums[i][j] += value[0] * upstream[k];  // 0 times Inf would be NaN
      }
    }
    row += line;
  }
}

template <typename T, int kKernel, int kStride>
__global__ void __launch_bounds__(kSumBlock, kKernel == 7 ? 2 : 4)
    depthwise_plane_weight(const DepthwiseWeightArgs<T> args, const PlaneSumTiling tiling) {
  using A = Acc<T>;
  for (int64_t item = blockIdx.x; item < tiling.items; item += gridDim.x) {
    const Quotient split = divide(item, args.dy.channels);
    const int filter = split.rest;
    const Stretch stretch = stretch_of(tiling.columns, split.whole, tiling.parts);
    A sums[kKernel][kKernel] = {};
    A bias[1] = {};
    const int64_t first = stretch.begin + threadIdx.x;
    Walk walk(first, kSumBlock, tiling.rows.count(), args.dy.width);
    for (int64_t at = first; at < stretch.end; at += kSumBlock) {
      const T* dy = args.dy.data + (walk.image * args.dy.channels + filter) * args.dy.height * args.dy.width;
      const int channel = filter / args.filters_of_channel;
      const T* x = args.x.data + (walk.image * args.x.channels + channel) * args.x.height * args.x.width;
      add_column<T, kKernel, kStride>(args, dy, x, tiling.rows.at(walk.row), walk.strip, tiling.rows.step, sums, bias);
      walk.advance();
    }
#pragma unroll
    for (int i = 0; i < kKernel; ++i) {
      sum_over_strips(sums[i], 0,
                      [&](int j, int, A sum) { partial(args, split.whole, i * kKernel + j)[filter] = sum; });
    }
    sum_over_strips(bias, 0, [&](int, int, A sum) { partial(args, split.whole, kKernel * kKernel)[filter] = sum; });
  }
}

template <typename T, int kKernel, int kStride>
Status launch_sums(const DepthwiseWeightArgs<T>& args, int64_t parts, const Launch& where) {
  PlaneSumTiling tiling;
  tiling.rows = cut_into_strips(args.dy.height, args.geometry.dilation[0], kSumRows);
  tiling.columns = args.images * tiling.rows.count() * args.dy.width;
  tiling.parts = parts;
  tiling.items = parts * args.dy.channels;
  return launch(where, depthwise_plane_weight<T, kKernel, kStride>, blocks_for(tiling.items), kSumBlock,
                sum_bytes<Acc<T>>(kKernel, 1), args, tiling);
}

}  // namespace

template <typename T>
Status depthwise_plane_weights(const DepthwiseWeightArgs<T>& args, int64_t parts, const Launch& where) {
  return for_kernel_size(args.geometry.kernel[0], [&]<int kKernel>() {
    if (args.geometry.stride[0] == 1) return launch_sums<T, kKernel, 1>(args, parts, where);
    return launch_sums<T, kKernel, 2>(args, parts, where);
  });
}

template Status depthwise_plane_weights(const DepthwiseWeightArgs<float>&, int64_t, const Launch&);
template Status depthwise_plane_weights(const DepthwiseWeightArgs<BF16>&, int64_t, const Launch&);
template Status depthwise_plane_weights(const DepthwiseWeightArgs<F16>&, int64_t, const Launch&);

}  // namespace tilewright::gpu
