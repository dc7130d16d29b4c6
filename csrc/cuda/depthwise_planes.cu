// Depthwise convolution of planes by columns in registers. Neighbouring threads own neighbouring columns, so that every
// access of a warp is one run of memory at any alignment, and a thread owns R outputs of its column, one below the
// other:
//
//   threads     0 1 2 3 4 ...        R = 8, K = 3, S = 1: 10 x 3 reads for 8 outputs of 9 taps
//   inputs      a b c                row 0 ... R * S + K - S
//               a b c                a thread's window moves down; each read serves up to K outputs
//               : : :
//
// Threads of narrow images go on with the next rows and planes, so
// that no lane is idle; with dilation d a thread has every d-th row.
#include "cuda/depthwise.cuh"

namespace tilewright::gpu {
namespace {

constexpr int kPlaneRows = 8, kPlaneBlock = 128;

struct PlaneTiling {
  Strips rows;
  int columns;  // of a plane, one thread each
  int64_t threads;
};

// sums[k] += what the plane gives to output row k of the column; (in_y, in_x) is the window's corner. The window goes
// by columns, of which one has few weights and many reads that wait for nothing.
template <typename T, int kKernel, int kStride>
__device__ __forceinline__ void add_column(const DepthwiseImages<const T>& in, const T* plane, int in_y, int in_x,
                                           int step_y, int step_x, const DepthwiseWeight<T>& weight, int filter,
                                           Acc<T> (&sums)[kPlaneRows][1]) {
  using A = Acc<T>;
  constexpr int kReach = (kPlaneRows - 1) * kStride + kKernel;
  const T* corner = plane + static_cast<int64_t>(in_y) * in.width + in_x;
  const T* weights = weight.data + filter * weight.filter;
  const int64_t line = static_cast<int64_t>(step_y) * in.width;
#pragma unroll(kKernel == 3 ? kKernel : 1)
  for (int j = 0; j < kKernel; ++j) {
    A tap[kKernel];
#pragma unroll
    for (int i = 0; i < kKernel; ++i) tap[i] = widen(weights[j * weight.col + i * weight.row]);
    const bool column_inside = is_inside(in_x + j * step_x, in.width);
    const T* from = corner + j * step_x;
#pragma unroll
    for (int reach = 0; reach < kReach; ++reach) {
      A x[1];
      load_inside<1>(column_inside && is_inside(in_y + reach * step_y, in.height), from, x);
#pragma unroll
      for (int i = reach % kStride; i < kKernel; i += kStride) {
        const int k = (reach - i) / kStride;
        if (i <= reach && k < kPlaneRows) sums[k][0] += x[0] * tap[i];
      }
      from += line;
    }
  }
}

template <typename T, int kKernel, int kStride>
__global__ void __launch_bounds__(kPlaneBlock, 4)
    depthwise_plane_tile(const DepthwiseArgs<T> args, const PlaneTiling tiling) {
  using A = Acc<T>;
  const auto& in = args.in;
  const auto& out = args.out;
  const int step_y = tiling.rows.step, step_x = args.geometry.dilation[1];
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kPlaneBlock + threadIdx.x; at < tiling.threads;
       at += static_cast<int64_t>(gridDim.x) * kPlaneBlock) {
    const Quotient by_columns = divide(at, tiling.columns);
    const Quotient by_rows = divide(by_columns.whole, tiling.rows.count());
    const Quotient by_channels = divide(by_rows.whole, out.channels);
    const int64_t image = by_channels.whole;
    const int channel = by_channels.rest, x = by_columns.rest, y0 = tiling.rows.at(by_rows.rest);
    // One plane of the forward, those of the channel's filters of a gradient.
    const bool gathers = args.geometry.gathers;
    const int first = gathers ? channel * args.filters_of_channel : channel;
    const int count = gathers ? args.filters_of_channel : 1;
    A sums[kPlaneRows][1] = {};
    for (int filter = first; filter < first + count; ++filter) {
      const int source = gathers ? filter : filter / args.filters_of_channel;
      const T* plane = in.data + (image * in.channels + source) * in.height * in.width;
      add_column<T, kKernel, kStride>(in, plane, y0 * kStride - args.geometry.padding[0],
                                      x * kStride - args.geometry.padding[1], step_y, step_x, args.weight, filter,
                                      sums);
    }
    finish<T>(args, channel, sums, [&](int k) -> int64_t {
      const int y = y0 + k * step_y;
      if (k >= tiling.rows.size || y >= out.height) return -1;
      return (by_rows.whole * out.height + y) * out.width + x;
    });
  }
}

template <typename T, int kKernel, int kStride>
Status launch_tile(const DepthwiseArgs<T>& args, const Launch& where) {
  // Rows are shared out evenly: 14 as 7 and 7, not as 8 and 6.
  const int step = args.geometry.dilation[0], longest = (args.out.height + step - 1) / step;
  const int strips = (longest + kPlaneRows - 1) / kPlaneRows;
  PlaneTiling tiling;
  tiling.rows = cut_into_strips(args.out.height, step, (longest + strips - 1) / strips);
  tiling.columns = args.out.width;
  tiling.threads = args.images * args.out.channels * tiling.rows.count() * tiling.columns;
  return launch(where, depthwise_plane_tile<T, kKernel, kStride>, blocks_for(divide_up(tiling.threads, kPlaneBlock)),
                kPlaneBlock, 0, args, tiling);
}

}  // namespace

template <typename T>
Status depthwise_plane_tiles(const DepthwiseArgs<T>& args, const Launch& where) {
  return for_kernel_size(args.geometry.kernel[0], [&]<int kKernel>() {
    if (args.geometry.stride[0] == 1) return launch_tile<T, kKernel, 1>(args, where);
    return launch_tile<T, kKernel, 2>(args, where);
  });
}

template Status depthwise_plane_tiles(const DepthwiseArgs<float>&, const Launch&);
template Status depthwise_plane_tiles(const DepthwiseArgs<BF16>&, const Launch&);
template Status depthwise_plane_tiles(const DepthwiseArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu
