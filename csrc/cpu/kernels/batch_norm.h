// Batch norm over the two layouts of batch_norm_args.h.
//   forward   stats: per block, mean and sum of squared distances;  apply: y = act((x - mean) * scale + shift +
//             residual)
//   backward  sums: per block, sum(g) and sum(g * (x - mean));      grad:  dx = (g - mean_g - (x - mean) *
//   slope) * scale
//
// A block's statistics take one pass around an estimate of its mean from a few of its values, and where that estimate
// was poor another around the better one, from cache (batch_norm_math.h). Blocks are summed in Acc and merged in
// float64 by the caller: the accuracy of float64 sums at the price of float32 ones.
#pragma once
#include "cpu/kernels/batch_norm_planes.h"
#include "cpu/kernels/batch_norm_rows.h"

namespace tilewright {
namespace {

// May these lines of y be streamed? length: of a whole line.
template <typename T>
inline bool can_stream_lines(bool streams, const T* y, const BatchNormLines& lines, int64_t length) {
  return streams && can_stream(y, length) && lines.from % kLanes<Acc<T>> == 0 && lines.to % kLanes<Acc<T>> == 0;
}

template <typename T>
void batch_norm_apply_planes(const BatchNormApplyArgs<T>& args, const BatchNormLines& lines) {
  const bool streams = can_stream_lines(args.streams, args.y, lines, args.shape.size) &&
                       (args.pre == nullptr || can_stream(args.pre, args.shape.size));
  choose(args.residual != nullptr, [&](auto residual) {
    choose_loop_activation(args.activation, [&](auto activation) {
      choose(streams, [&](auto stream) {
        batch_norm_apply_planes_as<T, activation, residual.value, stream.value>(args, lines);
      });
    });
  });
  if (streams) finish_streams();
}

template <typename T>
void batch_norm_sums_planes(const BatchNormSumsArgs<T>& args, int64_t begin, int64_t end) {
  choose(args.passes != nullptr, [&](auto relu) { batch_norm_sums_planes_as<T, relu.value>(args, begin, end); });
}

template <typename T>
void batch_norm_grad_planes(const BatchNormGradArgs<T>& args, const BatchNormLines& lines) {
  const bool aligned = args.dresidual == nullptr || can_stream(args.dresidual, args.shape.size);
  const bool streams = aligned && can_stream_lines(args.streams, args.dx, lines, args.shape.size);
  choose(args.slope != nullptr, [&](auto centred) {
    choose(args.passes != nullptr, [&](auto relu) {
      choose(streams,
             [&](auto stream) { batch_norm_grad_planes_as<T, relu.value, centred.value, stream.value>(args, lines); });
    });
  });
  if (streams) finish_streams();
}

template <typename T>
void batch_norm_apply_rows(const BatchNormApplyArgs<T>& args, const BatchNormLines& lines) {
  const bool streams = can_stream_lines(args.streams, args.y, lines, args.shape.channels) &&
                       (args.pre == nullptr || can_stream(args.pre, args.shape.channels));
  choose(args.residual != nullptr, [&](auto residual) {
    choose_loop_activation(args.activation, [&](auto activation) {
      choose(streams,
             [&](auto stream) { batch_norm_apply_rows_as<T, activation, residual.value, stream.value>(args, lines); });
    });
  });
  if (streams) finish_streams();
}

template <typename T>
void batch_norm_sums_rows(const BatchNormSumsArgs<T>& args, int64_t begin, int64_t end) {
  choose(args.passes != nullptr, [&](auto relu) { batch_norm_sums_rows_as<T, relu.value>(args, begin, end); });
}

template <typename T>
void batch_norm_grad_rows(const BatchNormGradArgs<T>& args, const BatchNormLines& lines) {
  const bool aligned = args.dresidual == nullptr || can_stream(args.dresidual, args.shape.channels);
  const bool streams = aligned && can_stream_lines(args.streams, args.dx, lines, args.shape.channels);
  choose(args.slope != nullptr, [&](auto centred) {
    choose(args.passes != nullptr, [&](auto relu) {
      choose(streams,
             [&](auto stream) { batch_norm_grad_rows_as<T, relu.value, centred.value, stream.value>(args, lines); });
    });
  });
  if (streams) finish_streams();
}

template <typename T>
void fill_batch_norm(TypedKernels<T>& table) {
  table.batch_norm.planes = {batch_norm_stats_planes<T>, batch_norm_sums_planes<T>, batch_norm_apply_planes<T>,
                             batch_norm_grad_planes<T>};
  table.batch_norm.rows = {batch_norm_stats_rows<T>, batch_norm_sums_rows<T>, batch_norm_apply_rows<T>,
                           batch_norm_grad_rows<T>};
}

}  // namespace
}  // namespace tilewright
