// What cpu/attention.cpp hands to kernels/attention.h.
//
// Letters: Sq queries, Sk keys, D head size (of query and key), Dv value size, group: query heads that share a key
// head. Rows are strided, elements of a row are contiguous: element (s, d) of a head is at pointer + s * row + d.
#pragma once
#include "common/macros.h"
#include "common/philox.h"
#include "common/types.h"

namespace tilewright {

enum class MaskKind { kNone, kBool, kElement, kAccumulator };  // bool: true = attend; T or Acc<T>: added to the logits

// What all heads of a call have in common.
template <typename T>
struct AttentionProblem {
  int64_t queries, keys, head_size, value_size;       // Sq, Sk, D, Dv
  int64_t query_row, key_row, value_row, output_row;  // strides in elements
  Acc<T> scale;
  bool causal;  // query i attends to keys 0 ... i
  MaskKind mask_kind;
  int64_t mask_row, mask_col;  // strides in elements; mask_col is 0 or 1
  bool dropout;
  DropoutRule rule;  // of logical element (head index * Sq + query) * Sk + key

  // Keys that some query may attend to. Those behind them are not packed: a product rounds its depth up (kStepOf), and
  // what stands there has to be zeros, not keys that may hold Inf or NaN.
  TILEWRIGHT_INLINE int64_t visible_keys() const { return causal && queries < keys ? queries : keys; }
};

template <typename T>
struct AttentionHead {
  const T* query;     // [Sq, D]
  const T* key;       // [Sk, D]
  const T* value;     // [Sk, Dv]
  const void* mask;   // [Sq, Sk] of the problem's mask kind, or null
  T* output;          // [Sq, Dv]; read only in the backward
  Acc<T>* logsumexp;  // [Sq]: log(sum over keys of e^logit), +Inf where no key is attended to
  int64_t index;      // batch * heads + head
};

template <typename T>
struct AttentionGradients {
  const T* grad_output;  // [Sq, Dv]
  const Acc<T>* delta;   // [Sq] sums over keys of P * dP, or null: rowsum(grad_output * output) is as good
  T* grad_query;         // [Sq, D] or null: not wanted
  Acc<T>* query_part;    // [Sq, D] contiguous or null; takes the place of grad_query where keys are split in chunks
};

template <typename T>
struct AttentionBackwardProblem {
  AttentionProblem<T> forward;
  int64_t grad_output_row, grad_query_row, grad_key_row, grad_value_row;
};

template <typename T>
struct AttentionKernels {
  // Query tiles of a head, and how many of them a forward task takes at best.
  int64_t (*query_tiles)(int64_t queries);
  int64_t tiles_per_block;
  // Elements of packed keys and values for one key head, and of scratch for one task of each kernel.
  int64_t (*packed_size)(const AttentionProblem<T>&);
  int64_t (*forward_scratch)(const AttentionProblem<T>&);
  int64_t (*backward_scratch)(const AttentionProblem<T>&, int64_t chunk_keys);
  int64_t (*mask_scratch)(const AttentionProblem<T>&, int64_t chunk_queries);
  // Keys [begin, end) of a key head; begin is a multiple of key_block.
  int64_t (*key_block)(const AttentionProblem<T>&);
  void (*pack)(const AttentionProblem<T>&, const T* key, const T* value, int64_t begin, int64_t end, Acc<T>* packed);
  void (*forward)(const AttentionProblem<T>&, const AttentionHead<T>&, int64_t tile_begin, int64_t tile_end,
                  const Acc<T>* packed, Acc<T>* scratch);
  // A few queries (Sq <= 4) of `group` heads over keys [begin, end) as they lie in memory. Each (head, query) leaves
  // {max, sum, output[Dv]} at parts + (head * Sq + query) * part_stride; merge_parts makes the result of them.
  int64_t (*stream_scratch)(const AttentionProblem<T>&, int64_t group);
  void (*stream)(const AttentionProblem<T>&, const AttentionHead<T>* heads, int64_t group, int64_t begin, int64_t end,
                 Acc<T>* parts, int64_t part_stride, Acc<T>* scratch);
  void (*merge_parts)(const AttentionProblem<T>&, const AttentionHead<T>&, const Acc<T>* parts, int64_t part_stride,
                      int64_t chunks, int64_t chunk_stride);
  // Gradients of keys [begin, end) of one key head from its `group` query heads in order, and those keys' share of the
  // query gradients. grad_key and grad_value may be null.
  void (*backward)(const AttentionBackwardProblem<T>&, const AttentionHead<T>* heads,
                   const AttentionGradients<T>* gradients, int64_t group, int64_t begin, int64_t end, T* grad_key,
                   T* grad_value, Acc<T>* scratch);
  // grad_query = the sum of `chunks` parts in order.
  void (*merge_query_parts)(const AttentionBackwardProblem<T>&, const Acc<T>* parts, int64_t chunks,
                            int64_t chunk_stride, T* grad_query);
  // delta[begin ... end) += the sum over keys of P * dP, as AttentionGradients has it; scratch as for mask_gradient.
  void (*row_delta)(const AttentionBackwardProblem<T>&, const AttentionHead<T>&, const T* grad_output, int64_t begin,
                    int64_t end, Acc<T>* delta, Acc<T>* scratch);
  // Adds the logit gradients of queries [begin, end) to grad_mask, whose strides are the mask's own.
  void (*mask_gradient)(const AttentionBackwardProblem<T>&, const AttentionHead<T>&, const T* grad_output,
                        const Acc<T>* delta, int64_t begin, int64_t end, Acc<T>* grad_mask, int64_t grad_row,
                        int64_t grad_col, Acc<T>* scratch);
};

}  // namespace tilewright
