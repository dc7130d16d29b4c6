// What the paths of matmul.h share: pointers of one item, blocks of K, the epilogue.
#pragma once
#include "cpu/kernels/activation.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

template <typename T>
constexpr bool kIsAccumulator = sizeof(T) == sizeof(Acc<T>);

// Operands of one item.
template <typename T>
struct ItemPointers {
  const T* a;
  const T* b;
  T* c;
  T* pre;
  const T* addend;
};

template <typename T>
inline ItemPointers<T> item_pointers(const MatmulArgs<T>& args, int64_t item) {
  const MatmulWalk::Step offset = args.batch.at(item);
  return {args.a + offset.a, args.b + offset.b, args.c + offset.c, args.pre == nullptr ? nullptr : args.pre + offset.c,
          args.addend == nullptr ? nullptr : args.addend + offset.addend};
}

// Can a tile add the addend to its sums as it is?
template <typename T>
inline bool can_add_in_tile(const MatmulArgs<T>& args) {
  return args.addend != nullptr && args.addend_col == 1 && args.alpha == 1 && args.beta == 1;
}

// Is there anything to do with a sum but to round it? `added`: the addend is in it already.
template <typename T>
inline bool has_epilogue(const MatmulArgs<T>& args, bool added = false) {
  return (args.addend != nullptr && !added) || args.alpha != 1 || args.activation != Activation::kNone ||
         args.pre != nullptr;
}

// --- epilogue: accumulators of one row range -> C ---
// With an addend whose rows are one value each, or not contiguous.
template <typename T>
inline void finish_row(const MatmulArgs<T>& args, const Acc<T>* acc, const T* addend, T* pre, T* c, int64_t cols) {
  using A = Acc<T>;
  const int64_t addend_col = args.addend_col;
  for_each_vector<A>(cols, [&](int64_t j, int64_t n) TILEWRIGHT_INLINE {
    Vec<A> v = load(acc + j, n) * args.alpha;
    Vec<A> extra;
    if (addend_col == 0) {
      extra = broadcast<A>(load(addend, 1)[0]);
    } else {
      A lanes[kLanes<A>] = {};
      for (int64_t i = 0; i < n; ++i) lanes[i] = load(addend + (j + i) * addend_col, 1)[0];
      extra = load(lanes);
    }
    v += extra * args.beta;
    if (pre != nullptr) store(pre + j, v, n);
    store(c + j, activate<A>(args.activation, v), n);
  });
}

// The same for contiguous rows of an addend or none, without a question in the inner loop.
template <Activation kActivation, bool kAddend, bool kPre, typename T>
void finish_contiguous_rows(const MatmulArgs<T>& args, const ItemPointers<T>& item, const Acc<T>* acc, int64_t acc_row,
                            int64_t row, int64_t rows, int64_t col, int64_t cols) {
  using A = Acc<T>;
  const Vec<A> alpha = broadcast<A>(args.alpha), beta = broadcast<A>(args.beta);
  for (int64_t i = 0; i < rows; ++i) {
    const A* sums = acc + i * acc_row;
    const T* addend = kAddend ? item.addend + (row + i) * args.addend_row + col : nullptr;
    const int64_t at = (row + i) * args.c_row + col;
    T *c = item.c + at, *pre = kPre ? item.pre + at : nullptr;
    for_each_vector<A>(cols, [=](int64_t j, int64_t n) TILEWRIGHT_INLINE {
      Vec<A> v = load(sums + j, n), extra{};
      if constexpr (kAddend) extra = load(addend + j, n);
      v = v * alpha;
      if constexpr (kAddend) v += extra * beta;
      if constexpr (kPre) store(pre + j, v, n);
      ElementTraits<ProductElement<T>>::store_sums(c + j, activate<A>(kActivation, v), n);
    });
  }
}

template <typename T>
void finish_rows(const MatmulArgs<T>& args, const ItemPointers<T>& item, const Acc<T>* acc, int64_t acc_row,
                 int64_t row, int64_t rows, int64_t col, int64_t cols) {
  if (item.addend == nullptr || args.addend_col == 1) {
    return choose_activation(args.activation, [&](auto activation) {
      choose(item.addend != nullptr, [&](auto addend) {
        choose(item.pre != nullptr, [&](auto pre) {
          finish_contiguous_rows<activation.value, addend.value, pre.value>(args, item, acc, acc_row, row, rows, col,
                                                                            cols);
        });
      });
    });
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = (row + i) * args.c_row + col;
    const T* addend = item.addend + (row + i) * args.addend_row + col * args.addend_col;
    finish_row(args, acc + i * acc_row, addend, item.pre == nullptr ? nullptr : item.pre + at, item.c + at, cols);
  }
}

// --- K blocks: every reduce item's K, cut into equal blocks of whole elements of E ---
struct DepthBlocks {
  int64_t per_item, count;
};
template <typename T>
inline DepthBlocks blocks_of_items(const MatmulArgs<T>& args, int64_t per_item) {
  return {per_item, per_item * args.reduce_count};
}
struct DepthRange {
  int64_t begin, depth;  // in values
  MatmulWalk::Step offset;
};
template <typename E, typename T>
inline DepthRange depth_range(const MatmulArgs<T>& args, const DepthBlocks& blocks, int64_t index) {
  const int64_t part = index % blocks.per_item, elements = elements_of<E>(args.K);
  constexpr int64_t kValues = kStepOf<E> * kDepthOf<E>;
  const int64_t steps = elements / kStepOf<E>;
  const int64_t begin = steps * part / blocks.per_item * kValues;
  const int64_t depth = smaller(args.K, steps * (part + 1) / blocks.per_item * kValues) - begin;
  if (args.reduce_count == 1) return {begin, depth, {0, 0, 0, 0}};
  return {begin, depth, args.reduce.at(index / blocks.per_item)};
}

}  // namespace
}  // namespace tilewright
