// layer_norm on the CPU: rows over threads. Weight and bias gradients are summed per chunk of rows and the chunks in
// order, and the chunks depend on the shape alone, so the result is the same for any number of threads.
#include "ops/layer_norm.h"

#include <algorithm>

#include "cpu/kernel_table.h"
#include "cpu/tensors.h"

namespace tilewright {
namespace {

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward_cpu(const Tensor& input, at::IntArrayRef normalized_shape,
                                                          const OptionalTensor& weight_opt,
                                                          const OptionalTensor& bias_opt, double eps) {
  const Tensor weight_in = value_or_undefined(weight_opt), bias_in = value_or_undefined(bias_opt);
  const auto [rows, cols] = check_layer_norm(input, normalized_shape, weight_in, bias_in);
  const auto dtype = input.scalar_type();
  const Tensor x = input.contiguous();
  const Tensor weight = as_accumulator(weight_in, dtype), bias = as_accumulator(bias_in, dtype);

  Tensor output = empty_cpu(input.sizes(), dtype);
  const auto stat_shape = layer_norm_stat_shape(input.sizes(), normalized_shape);
  Tensor mean = empty_cpu(stat_shape, accumulation_dtype(dtype)),
         rstd = empty_cpu(stat_shape, accumulation_dtype(dtype));
  if (rows == 0) return {output, mean, rstd};

  dispatch_floating(dtype, "layer_norm", [&](auto element) {
    using T = decltype(element);
    const LayerNormForwardArgs<T> args{const_data<T>(x),
                                       const_data<Acc<T>>(weight),
                                       const_data<Acc<T>>(bias),
                                       mutable_data<T>(output),
                                       mutable_data<Acc<T>>(mean),
                                       mutable_data<Acc<T>>(rstd),
                                       cols,
                                       static_cast<Acc<T>>(eps),
                                       streams_past_cache(2 * output.nbytes())};
    const auto kernel = kernels<T>().layer_norm.forward;
    parallel_for_cost(rows, cols, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  });
  return {output, mean, rstd};
}

// At most 32 chunks: enough to balance any machine's threads, few enough that their partial sums stay small beside the
// input.
int64_t rows_per_chunk(int64_t rows, int64_t cols) {
  constexpr int64_t kMaxChunks = 32, kMinElements = 16384;
  const int64_t worthwhile = divide_up(kMinElements, std::max<int64_t>(1, cols));
  return std::max({worthwhile, divide_up(rows, kMaxChunks), int64_t{1}});
}

// dweight or dbias while it is summed: the first chunk adds to the result itself, the others to parts that are added to
// it in order.
template <typename A>
class ChunkSums {
 public:
  ChunkSums(const Tensor& result, int64_t chunks, int64_t cols)
      : result_(mutable_data<A>(result)), chunks_(chunks), cols_(cols) {
    if (result_ != nullptr && chunks > 1) parts_ = uninitialised<A>((chunks - 1) * cols);
  }
  // The sums of a chunk, set to zero; null where the gradient is not wanted.
  A* start(int64_t chunk) {
    if (result_ == nullptr) return nullptr;
    A* sums = chunk == 0 ? result_ : parts_.get() + (chunk - 1) * cols_;
    std::fill_n(sums, cols_, A(0));
    return sums;
  }
  void merge() {
    if (result_ == nullptr) return;
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      const A* part = parts_.get() + (chunk - 1) * cols_;
      for (int64_t c = 0; c < cols_; ++c) result_[c] += part[c];
    }
  }

 private:
  A* result_;
  int64_t chunks_, cols_;
  std::unique_ptr<A[]> parts_;
};

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                           at::IntArrayRef normalized_shape, const Tensor& mean,
                                                           const Tensor& rstd, const OptionalTensor& weight_opt,
                                                           std::array<bool, 3> output_mask) {
  const Tensor weight_in = value_or_undefined(weight_opt);
  const auto [rows, cols] = check_layer_norm_backward(grad_output, input, normalized_shape, mean, rstd, weight_in);
  const auto dtype = input.scalar_type();
  const Tensor dy = grad_output.contiguous(), x = input.contiguous(), means = mean.contiguous(),
               rstds = rstd.contiguous();
  const Tensor weight = as_accumulator(weight_in, dtype);
  const auto sum_dtype = accumulation_dtype(dtype);
  const int64_t chunk_rows = rows_per_chunk(rows, cols), chunks = divide_up(rows, chunk_rows);

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
      using A = Acc<T>;
      const auto kernel = kernels<T>().layer_norm.backward;
      ChunkSums<A> weight_sums(grad_weight, chunks, cols), bias_sums(grad_bias, chunks, cols);
      parallel_for_cost(chunks, chunk_rows * cols, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          const LayerNormBackwardArgs<T> args{const_data<T>(dy),
                                              const_data<T>(x),
                                              const_data<A>(weight),
                                              const_data<A>(means),
                                              const_data<A>(rstds),
                                              mutable_data<T>(grad_input),
                                              weight_sums.start(chunk),
                                              bias_sums.start(chunk),
                                              cols,
                                              streams_past_cache(3 * x.nbytes())};
          kernel(args, chunk * chunk_rows, std::min(rows, (chunk + 1) * chunk_rows));
        }
      });
      weight_sums.merge();
      bias_sums.merge();
    });
  }
  const auto parameter_dtype = weight_in.defined() ? weight_in.scalar_type() : dtype;
  const auto finished = [&](const Tensor& grad, bool wanted) {
    if (!wanted) return Tensor();
    return grad.scalar_type() == parameter_dtype ? grad : grad.to(parameter_dtype);
  };
  return {grad_input, finished(grad_weight, output_mask[1]), finished(grad_bias, output_mask[2])};
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("layer_norm_forward", tilewright::layer_norm_forward_cpu);
  m.impl("layer_norm_backward", tilewright::layer_norm_backward_cpu);
}
