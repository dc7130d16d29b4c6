// Scaled-dot-product attention of one head: O = softmax(scale * Q K^T + mask) V. attention_forward.h,
// attention_stream.h (few queries), attention_backward.h and attention_mask_gradient.h hold the loops.
#pragma once
#include "cpu/kernels/attention_backward.h"
#include "cpu/kernels/attention_forward.h"
#include "cpu/kernels/attention_mask_gradient.h"
#include "cpu/kernels/attention_stream.h"

namespace tilewright {
namespace {

template <typename T>
void fill_attention(TypedKernels<T>& table) {
  AttentionKernels<T>& kernels = table.attention;
  kernels.query_tiles = tile_count;
  kernels.tiles_per_block = kTilesPerBlock;
  kernels.packed_size = attention_packed_size<T>;
  kernels.forward_scratch = attention_forward_scratch<T>;
  kernels.backward_scratch = attention_backward_scratch<T>;
  kernels.mask_scratch = attention_mask_scratch<T>;
  kernels.key_block = attention_key_block<T>;
  kernels.pack = attention_pack<T>;
  kernels.forward = attention_forward<T>;
  kernels.stream_scratch = attention_stream_scratch<T>;
  kernels.stream = attention_stream<T>;
  kernels.merge_parts = attention_merge_parts<T>;
  kernels.backward = attention_backward<T>;
  kernels.merge_query_parts = attention_merge_query_parts<T>;
  kernels.row_delta = attention_row_delta<T>;
  kernels.mask_gradient = attention_mask_gradient<T>;
}

}  // namespace
}  // namespace tilewright
