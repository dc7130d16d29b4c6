// Batch norm over the two layouts of batch_norm_args.h.
//   forward   stats: per block, mean and sum of squared distances;  apply: y = act((x - mean) * scale + shift +
//   residual) backward  sums: per block, sum(g) and sum(g * (x - mean));      grad:  dx = (g - mean_g - (x - mean) *
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

template <typename T>
void batch_norm_apply_planes(const BatchNormApplyArgs<T>& args, const BatchNormLines& lines) {
  if (args.residual != nullptr) {
    if (args.relu) return batch_norm_apply_planes_as<T, true, true>(args, lines);
    return batch_norm_apply_planes_as<T, false, true>(args, lines);
  }
  if (args.relu) return batch_norm_apply_planes_as<T, true, false>(args, lines);
  batch_norm_apply_planes_as<T, false, false>(args, lines);
}

template <typename T>
void batch_norm_apply_rows(const BatchNormApplyArgs<T>& args, const BatchNormLines& lines) {
  if (args.residual != nullptr) {
    if (args.relu) return batch_norm_apply_rows_as<T, true, true>(args, lines);
    return batch_norm_apply_rows_as<T, false, true>(args, lines);
  }
  if (args.relu) return batch_norm_apply_rows_as<T, true, false>(args, lines);
  batch_norm_apply_rows_as<T, false, false>(args, lines);
}

template <typename T>
void batch_norm_sums_planes(const BatchNormSumsArgs<T>& args, int64_t begin, int64_t end) {
  if (args.y != nullptr) return batch_norm_sums_planes_as<T, true>(args, begin, end);
  batch_norm_sums_planes_as<T, false>(args, begin, end);
}

template <typename T>
void batch_norm_sums_rows(const BatchNormSumsArgs<T>& args, int64_t begin, int64_t end) {
  if (args.y != nullptr) return batch_norm_sums_rows_as<T, true>(args, begin, end);
  batch_norm_sums_rows_as<T, false>(args, begin, end);
}

template <typename T>
void batch_norm_grad_planes(const BatchNormGradArgs<T>& args, const BatchNormLines& lines) {
  if (args.slope != nullptr) {
    if (args.y != nullptr) return batch_norm_grad_planes_as<T, true, true>(args, lines);
    return batch_norm_grad_planes_as<T, false, true>(args, lines);
  }
  if (args.y != nullptr) return batch_norm_grad_planes_as<T, true, false>(args, lines);
  batch_norm_grad_planes_as<T, false, false>(args, lines);
}

template <typename T>
void batch_norm_grad_rows(const BatchNormGradArgs<T>& args, const BatchNormLines& lines) {
  if (args.slope != nullptr) {
    if (args.y != nullptr) return batch_norm_grad_rows_as<T, true, true>(args, lines);
    return batch_norm_grad_rows_as<T, false, true>(args, lines);
  }
  if (args.y != nullptr) return batch_norm_grad_rows_as<T, true, false>(args, lines);
  batch_norm_grad_rows_as<T, false, false>(args, lines);
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
