// layer_norm on the CPU: rows over threads. Weight and bias gradients are summed per chunk of rows and the chunks in
// order, and the chunks depend on the shape alone, so the result is the same for any number of threads.
#include "ops/layer_norm.h"

#include <algorithm>

#include "cpu/kernel_table.h"
#include "cpu/row_chunks.h"
#include "cpu/tensors.h"
#include "cpu/widened.h"
#include "ops/memory_order.h"

namespace tilewright {
namespace {

// The rows of an input where they lie in memory: row outer * inner + i is at outer * outer_stride + i * stride. A
// tensor whose rows lie in another way, or are not contiguous themselves, is copied.
struct InputRows {
  Tensor x;
  int64_t inner, stride, outer_stride;

  InputRows(const Tensor& input, size_t normalized_dims, int64_t rows, int64_t cols)
      : x(input), inner(std::max<int64_t>(1, rows)), stride(cols), outer_stride(0) {
    if (input.is_contiguous()) return;
    const auto sizes = input.sizes(), strides = input.strides();
    const size_t outer_dims = sizes.size() - normalized_dims;
    const MergedDims across = merged_dims(sizes.slice(0, outer_dims), strides.slice(0, outer_dims));
    const MergedDims along = merged_dims(sizes.slice(outer_dims), strides.slice(outer_dims));
    if (across.sizes.size() > 2 || along.sizes.size() > 1 || along.strides[0] != 1) {
      x = input.contiguous();
      return;
    }
    inner = across.sizes.back();
    stride = across.strides.back();
    if (across.sizes.size() == 2) outer_stride = across.strides[0];
  }

  // Calls body(x, begin, end) for rows [begin, end) run by run of rows `stride` apart: row r is at x + r * stride.
  template <typename T, typename Body>
  void for_each_run(int64_t begin, int64_t end, const Body& body) const {
    for (int64_t run_end; begin < end; begin = run_end) {
      const int64_t outer = begin / inner;
      run_end = std::min(end, (outer + 1) * inner);
      body(const_data<T>(x) + outer * (outer_stride - inner * stride), begin, run_end);
    }
  }
};

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward_cpu(const Tensor& input, at::IntArrayRef normalized_shape,
                                                          const OptionalTensor& weight_opt,
                                                          const OptionalTensor& bias_opt, double eps) {
  const Tensor weight_in = value_or_undefined(weight_opt), bias_in = value_or_undefined(bias_opt);
  const auto [rows, cols] = check_layer_norm(input, normalized_shape, weight_in, bias_in);
  const auto dtype = input.scalar_type();
  const InputRows x(input, normalized_shape.size(), rows, cols);
  const Tensor weight = widened(weight_in, dtype), bias = widened(bias_in, dtype);

  Tensor output = empty_cpu(input.sizes(), dtype);
  const auto stat_shape = layer_norm_stat_shape(input.sizes(), normalized_shape);
  Tensor mean = empty_cpu(stat_shape, accumulation_dtype(dtype)),
         rstd = empty_cpu(stat_shape, accumulation_dtype(dtype));
  if (rows == 0) return {output, mean, rstd};

  dispatch_floating(dtype, "layer_norm", [&](auto element) {
    using T = decltype(element);
    const LayerNormForwardArgs<T> args{nullptr,
                                       const_data<Acc<T>>(weight),
                                       const_data<Acc<T>>(bias),
                                       mutable_data<T>(output),
                                       mutable_data<Acc<T>>(mean),
                                       mutable_data<Acc<T>>(rstd),
                                       cols,
                                       x.stride,
                                       static_cast<Acc<T>>(eps),
                                       streams_past_cache(2 * output.nbytes())};
    const auto kernel = kernels<T>().layer_norm.forward;
    parallel_for_cost(rows, cols, [&](int64_t begin, int64_t end) {
      x.for_each_run<T>(begin, end, [&](const T* first, int64_t run_begin, int64_t run_end) {
        LayerNormForwardArgs<T> of_run = args;
        of_run.x = first;
        kernel(of_run, run_begin, run_end);
      });
    });
  });
  return {output, mean, rstd};
}

template <typename T>
struct LayerNormBackward {
  LayerNormBackwardArgs<T> args;  // without x and the parameter gradients
  const InputRows& x;
  const Tensor &grad_weight, &grad_bias;
  int64_t rows;

  void run() {
    // So few make at most three chunks (row_chunks.h), which two threads share badly: 0.5 to 1.1x the time by columns;
    // at 64 rows and more it is as often slower, up to 1.5x.
    constexpr int64_t kFewRows = 48;
    if (grad_weight.defined() && rows < kFewRows && args.cols >= kLongRow && rows <= x.inner) return by_columns();
    by_rows();
  }

  void by_rows() {
    const auto kernel = kernels<T>().layer_norm.backward;
    const RowChunks chunks(rows, args.cols);
    ChunkSums<Acc<T>> weight_sums(grad_weight, chunks.count, args.cols), bias_sums(grad_bias, chunks.count, args.cols);
    parallel_for_cost(chunks.count, chunks.rows * args.cols, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        LayerNormBackwardArgs<T> of_chunk = args;
        of_chunk.dweight = weight_sums.start(chunk);
        of_chunk.dbias = bias_sums.start(chunk);
        x.for_each_run<T>(chunks.begin(chunk), chunks.end(chunk), [&](const T* first, int64_t row, int64_t row_end) {
          of_chunk.x = first;
          kernel(of_chunk, row, row_end);
        });
      }
    });
    weight_sums.merge();
    bias_sums.merge();
  }

  void by_columns() {
    // Sums of 1024 columns, 8 KB, stay in L1 beside the rows that pass by.
    constexpr int64_t kTile = 1024;
    const auto& kernel = kernels<T>().layer_norm;
    const auto means = uninitialised<LayerNormRowMeans<Acc<T>>>(rows);
    args.x = const_data<T>(x.x);
    parallel_for_cost(rows, args.cols,
                      [&](int64_t begin, int64_t end) { kernel.row_means(args, means.get(), begin, end); });
    args.dweight = mutable_data<Acc<T>>(grad_weight.zero_());
    args.dbias = mutable_data<Acc<T>>(grad_bias.zero_());
    parallel_for_cost(divide_up(args.cols, kTile), rows * kTile, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        kernel.column_gradients(args, means.get(), rows, tile * kTile, std::min(args.cols, (tile + 1) * kTile));
      }
    });
  }
};

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                           at::IntArrayRef normalized_shape, const Tensor& mean,
                                                           const Tensor& rstd, const OptionalTensor& weight_opt,
                                                           std::array<bool, 3> output_mask) {
  const Tensor weight_in = value_or_undefined(weight_opt);
  const auto [rows, cols] = check_layer_norm_backward(grad_output, input, normalized_shape, mean, rstd, weight_in);
  const auto dtype = input.scalar_type();
  const Tensor dy = grad_output.contiguous(), means = mean.contiguous(), rstds = rstd.contiguous();
  const InputRows x(input, normalized_shape.size(), rows, cols);
  const Tensor weight = widened(weight_in, dtype);
  const auto sum_dtype = accumulation_dtype(dtype);

  // The kernel sums both parameter gradients or none.
  const bool wants_parameters = output_mask[1] || output_mask[2];
  Tensor grad_input = output_mask[0] ? empty_cpu(input.sizes(), dtype) : Tensor();
  Tensor grad_weight = wants_parameters ? empty_cpu(normalized_shape, sum_dtype) : Tensor();
  Tensor grad_bias = wants_parameters ? empty_cpu(normalized_shape, sum_dtype) : Tensor();
  if (input.numel() == 0) {
    if (wants_parameters) grad_weight.zero_(), grad_bias.zero_();
  } else if (output_mask[0] || wants_parameters) {
    dispatch_floating(dtype, "layer_norm_backward", [&](auto element) {
      using T = decltype(element);
      LayerNormBackward<T>{
          {const_data<T>(dy), nullptr, const_data<Acc<T>>(weight), const_data<Acc<T>>(means), const_data<Acc<T>>(rstds),
           mutable_data<T>(grad_input), nullptr, nullptr, cols, x.stride, streams_past_cache(3 * input.nbytes())},
          x,
          grad_weight,
          grad_bias,
          rows}
          .run();
    });
  }
  const auto parameter_dtype = weight_in.defined() ? weight_in.scalar_type() : dtype;
  return {grad_input, finished_gradient(grad_weight, output_mask[1], parameter_dtype),
          finished_gradient(grad_bias, output_mask[2], parameter_dtype)};
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("layer_norm_forward", tilewright::layer_norm_forward_cpu);
  m.impl("layer_norm_backward", tilewright::layer_norm_backward_cpu);
}
