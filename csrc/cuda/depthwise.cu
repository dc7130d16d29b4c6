// Which kernel serves a depthwise convolution, and the second launch of its weight gradient.
#include <algorithm>
#include <type_traits>

#include "cuda/depthwise_sums.cuh"

namespace tilewright::gpu {
namespace {

// Tiles are there for square kernels of 3, 5 and 7 with stride 1, or with stride 2 and no dilation.
template <typename T>
bool has_tiles(const DepthwiseGeometry& g) {
  const bool kernel = g.kernel[0] == g.kernel[1] && (g.kernel[0] == 3 || g.kernel[0] == 5 || g.kernel[0] == 7);
  const bool stride = g.stride[0] == g.stride[1] && g.stride[0] <= 2;
  const bool dilation = g.stride[0] == 1 || (g.dilation[0] == 1 && g.dilation[1] == 1);
  return !std::is_same_v<T, double> && kernel && stride && dilation;
}

// Stride 1: the gradient is a forward with the kernel turned round.
template <typename T>
DepthwiseArgs<T> turned_round(const DepthwiseArgs<T>& args) {
  DepthwiseArgs<T> turned = args;
  auto& g = turned.geometry;
  auto& w = turned.weight;
  w.data += (g.kernel[0] - 1) * w.row + (g.kernel[1] - 1) * w.col;
  w.row = -w.row;
  w.col = -w.col;
  for (int d = 0; d < 2; ++d) g.padding[d] = g.dilation[d] * (g.kernel[d] - 1) - g.padding[d];
  return turned;
}

template <typename T>
bool vectors_fit(const DepthwiseArgs<T>& args) {
  if (args.filters_of_channel != 1) return false;
  return args.geometry.kernel[0] == 3 ? channels_are_aligned<kTileVec<T, 3>>(args)
                                      : channels_are_aligned<kTileVec<T, 5>>(args);
}

template <typename T>
Status depthwise_tiles(const DepthwiseArgs<T>& args, const Launch& where) {
  const auto& g = args.geometry;
  if (g.gathers && g.stride[0] == 2) {
    return g.channels_last ? depthwise_last_cells(args, where) : depthwise_plane_cells(args, where);
  }
  const auto tiles = g.channels_last ? depthwise_last_tiles<T> : depthwise_plane_tiles<T>;
  return g.gathers ? tiles(turned_round(args), where) : tiles(args, where);
}

// Column sums: a block of 32 columns by 8 rows, the rows in order.
constexpr int kColumns = 32, kLanes = 8;

template <typename T>
__global__ void __launch_bounds__(kColumns* kLanes)
    depthwise_add_partials(const DepthwiseWeightArgs<T> args, int64_t parts, int taps) {
  using A = Acc<T>;
  __shared__ A of_lane[kLanes][kColumns];
  const int column = static_cast<int>(threadIdx.x) % kColumns, lane = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t filters = args.dy.channels, filter = static_cast<int64_t>(blockIdx.x) * kColumns + column;
  for (int tap = static_cast<int>(blockIdx.y); tap <= taps; tap += static_cast<int>(gridDim.y)) {
    A sum = A(0);
    if (filter < filters) {
      for (int64_t part = lane; part < parts; part += kLanes) sum += partial(args, part, tap)[filter];
    }
    of_lane[lane][column] = sum;
    __syncthreads();
    if (lane == 0 && filter < filters) {
#pragma unroll
      for (int i = 1; i < kLanes; ++i) sum += of_lane[i][column];
      if (tap == taps) {
        if (args.dbias != nullptr) args.dbias[filter] = narrow<T>(sum);
      } else if (args.dweight != nullptr) {
        const int i = tap / args.geometry.kernel[1], j = tap - i * args.geometry.kernel[1];
        args.dweight[filter * args.filter + i * args.row + j * args.col] = narrow<T>(sum);
      }
    }
    __syncthreads();  // the array is written again for the next tap
  }
}

template <typename T>
Status launch_sums(const DepthwiseWeightArgs<T>& args, int64_t parts, const Launch& where) {
  const auto& g = args.geometry;
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int kVec = 4;
    const int64_t channels = args.dy.channels;
    const bool fits = args.filters_of_channel == 1 && is_aligned<kVec>(args.x.data, channels) &&
                      is_aligned<kVec>(args.dy.data, channels);
    if (has_tiles<T>(g) && !g.channels_last) return depthwise_plane_weights(args, parts, where);
    if (has_tiles<T>(g) && fits) return depthwise_last_weights(args, parts, where);
  }
  return depthwise_any_weights(args, parts, where);
}

}  // namespace

int64_t depthwise_weight_parts(int64_t pixels, int64_t filters, bool channels_last) {
  // Four blocks on each multiprocessor of an H100 or H200, and some turns of its loop for each thread.
  constexpr int64_t kBlocks = 528, kChannelsOfBlock = 64, kFewestPixels = 256;
  const int64_t blocks = channels_last ? divide_up(filters, kChannelsOfBlock) : filters;
  const int64_t most = divide_up(pixels, channels_last ? kFewestPixels : 4 * kFewestPixels);
  return std::max(int64_t{1}, std::min(divide_up(kBlocks, blocks), most));
}

template <typename T>
Status depthwise(const DepthwiseArgs<T>& args, const Launch& where) {
  if constexpr (!std::is_same_v<T, double>) {
    if (has_tiles<T>(args.geometry) && (!args.geometry.channels_last || vectors_fit(args))) {
      return depthwise_tiles(args, where);
    }
  }
  return depthwise_any(args, where);
}

template <typename T>
Status depthwise_weight_gradient(const DepthwiseWeightArgs<T>& args, const Launch& where) {
  const auto& g = args.geometry;
  const int64_t pixels = args.images * args.dy.height * args.dy.width;
  const int64_t parts = depthwise_weight_parts(pixels, args.dy.channels, g.channels_last);
  const Status status = launch_sums(args, parts, where);
  if (status != 0) return status;
  constexpr int64_t kMostRows = 65535;
  const int taps = g.kernel[0] * g.kernel[1];
  const dim3 grid(static_cast<unsigned>(divide_up(args.dy.channels, kColumns)),
                  static_cast<unsigned>(std::min(int64_t{taps} + 1, kMostRows)));
  return launch(where, depthwise_add_partials<T>, grid, kColumns * kLanes, 0, args, parts, taps);
}

template Status depthwise(const DepthwiseArgs<float>&, const Launch&);
template Status depthwise(const DepthwiseArgs<double>&, const Launch&);
template Status depthwise(const DepthwiseArgs<BF16>&, const Launch&);
template Status depthwise(const DepthwiseArgs<F16>&, const Launch&);
template Status depthwise_weight_gradient(const DepthwiseWeightArgs<float>&, const Launch&);
template Status depthwise_weight_gradient(const DepthwiseWeightArgs<double>&, const Launch&);
template Status depthwise_weight_gradient(const DepthwiseWeightArgs<BF16>&, const Launch&);
template Status depthwise_weight_gradient(const DepthwiseWeightArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu
