// dropout on the CPU: spans of logical elements over threads. The mask is a function of the logical index, so neither
// the split nor the memory layout changes a result.
#include "cpu/dropout.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/MemoryOverlap.h>

#include <mutex>

#include "cpu/keep_mask.h"
#include "cpu/kernel_table.h"
#include "ops/dropout.h"
#include "ops/memory_order.h"

namespace tilewright {

namespace {

// Runs body(begin, end) over elements; begin is always the first of a group of eight.
template <typename Body>
void parallel_for_elements(int64_t numel, const Body& body) {
  constexpr int64_t kBlock = 2048;
  parallel_for_cost((numel + kBlock - 1) / kBlock, kBlock,
                    [&](int64_t begin, int64_t end) { body(begin * kBlock, std::min(numel, end * kBlock)); });
}

// Fills in the layout and returns the number of tiles, or 0 where the layout is another.
int64_t tile_transposed(const MergedDims& dims, TransposedLayout& layout) {
  const auto found = find_transposed(dims);
  if (!found.has_value()) return 0;
  const int64_t major = found->major, minor = found->minor;
  // The bits of a tile should stay in L1; a tile of 256 positions still fills the vectors of every channel.
  constexpr int64_t kTileElements = 1 << 16, kMinPositions = 256;
  const int64_t positions = std::max(kMinPositions, kTileElements / major / 8 * 8);
  layout = {major, minor, std::min(minor, positions), 0};
  const int64_t tiles = (minor + layout.tile - 1) / layout.tile;
  const int64_t bytes_of_bits = tiles == 1 ? major * minor / 8 + 1 : major * (layout.tile / 8 + 1);
  constexpr int64_t kPadding = 32;  // kKeepBitsPadding of the widest ISA, and the bits of a tail of positions
  layout.scratch = bytes_of_bits + major + 9 * kPadding;
  return tiles * found->batch;
}

template <typename T>
void run_typed(const DropoutArgs<T>& args, const MergedDims& dims, int64_t numel) {
  const auto& kernel = kernels<T>().dropout;
  if (dims.sizes.size() == 1 && dims.strides[0] == 1) {
    return parallel_for_elements(numel, [&](int64_t begin, int64_t end) { kernel.contiguous(args, begin, end); });
  }
  TransposedLayout transposed;
  const int64_t tiles = tile_transposed(dims, transposed);
  if (tiles > 0) {
    return parallel_for_cost(tiles, transposed.tile * transposed.major, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> scratch(static_cast<size_t>(transposed.scratch));
      kernel.transposed(args, transposed, begin, end, scratch.data());
    });
  }
  const StridedLayout strided{static_cast<int64_t>(dims.sizes.size()), dims.sizes.data(), dims.strides.data()};
  parallel_for_elements(numel, [&](int64_t begin, int64_t end) { kernel.strided(args, strided, begin, end); });
}

}  // namespace

void run_dropout(const Tensor& input, const Tensor& residual, const Tensor& bias, const Tensor& output,
                 const Tensor& seed, double p, const char* op, KeepBits bits) {
  const DropoutRule rule = dropout_rule_of(seed, p, op);
  const int64_t numel = input.numel();
  if (numel == 0) return;
  const MergedDims dims = merged_dims(input.sizes(), input.strides());
  const bool streams = streams_past_cache(input.nbytes() * (residual.defined() ? 3 : 2)) && !output.is_same(input);
  dispatch_floating(input.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const DropoutArgs<T> args{const_data<T>(input),
                              const_data<T>(residual),
                              const_data<Acc<T>>(bias),
                              mutable_data<T>(output),
                              bias.defined() ? bias.numel() : 0,
                              streams,
                              rule,
                              bits.write,
                              bits.read};
    run_typed(args, dims, numel);
  });
}

namespace {

Tensor dropout_seed_cpu(const Tensor& input) {
  Tensor seed = at::empty({1}, input.options().dtype(at::kLong).memory_format(std::nullopt));
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  *seed.mutable_data_ptr<int64_t>() = static_cast<int64_t>(generator->random64());
  return seed;
}

Tensor dropout_forward_cpu(const Tensor& input, const Tensor& seed, double p) {
  Tensor output = empty_pointwise(input);
  run_dropout(ordered_like(input, output), Tensor(), Tensor(), output, seed, p, "dropout");
  return output;
}

void dropout_forward_inplace_cpu(Tensor& input, const Tensor& seed, double p) {
  at::assert_no_internal_overlap(input);
  if (input.is_non_overlapping_and_dense()) return run_dropout(input, Tensor(), Tensor(), input, seed, p, "dropout_");
  input.copy_(dropout_forward_cpu(input, seed, p));
}

std::tuple<Tensor, Tensor> dropout_forward_keeping_cpu(const Tensor& input, const Tensor& seed, double p) {
  check_dropout_keeping(input);
  Tensor output = empty_cpu(input.sizes(), input.scalar_type());
  Tensor keep_bits = empty_bits(keep_bits_size(input.numel()));
  run_dropout(input, Tensor(), Tensor(), output, seed, p, "dropout", {mutable_data<uint8_t>(keep_bits), nullptr});
  return {output, keep_bits};
}

Tensor dropout_backward_cpu(const Tensor& grad_output, const Tensor& seed, double p, const OptionalTensor& keep_bits) {
  if (!is_defined(keep_bits) || !grad_output.is_contiguous()) return dropout_forward_cpu(grad_output, seed, p);
  check_keep_bits(*keep_bits, grad_output);
  Tensor grad_input = empty_cpu(grad_output.sizes(), grad_output.scalar_type());
  run_dropout(grad_output, Tensor(), Tensor(), grad_input, seed, p, "dropout",
              {nullptr, const_data<uint8_t>(*keep_bits)});
  return grad_input;
}

Tensor dropout_mask_cpu(const Tensor& like, const Tensor& seed, double p) {
  const DropoutRule rule = dropout_rule_of(seed, p, "dropout_mask");
  Tensor mask = at::empty(like.sizes(), like.options().dtype(at::kBool).memory_format(std::nullopt));
  const auto kernel = kernels<float>().dropout.mask;
  auto* bytes = static_cast<uint8_t*>(mask.mutable_data_ptr());
  parallel_for_elements(mask.numel(), [&](int64_t begin, int64_t end) { kernel(rule, bytes, begin, end); });
  return mask;
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("dropout_seed", tilewright::dropout_seed_cpu);
  m.impl("dropout_forward", tilewright::dropout_forward_cpu);
  m.impl("dropout_forward_keeping", tilewright::dropout_forward_keeping_cpu);
  m.impl("dropout_forward_", tilewright::dropout_forward_inplace_cpu);
  m.impl("dropout_backward", tilewright::dropout_backward_cpu);
  m.impl("dropout_mask", tilewright::dropout_mask_cpu);
}
