// Dropout and what is fused with it, elementwise: y = residual + (x + bias) * keep * scale.
//
// Bits of a span of elements are made first (keep_bits.h), into a buffer that stays in L1, and then read by whichever
// loop the memory layout asks for. The bits belong to logical indices, so every layout drops the same elements.
// A dropped element is x * 0 as in native (NaN where x is not finite), not 0.
#pragma once
#include "cpu/kernels/keep_bits.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

constexpr int64_t kSpan = 256;  // elements whose bits are made at a time: a whole block on AVX-512

// Bits of one span, wherever it starts.
struct SpanBits {
  uint8_t bits[kSpan / kDropoutGroup + 1 + kKeepBitsPadding];
};

// v * (bit ? scale : 0) + residual[c]. The residual is loaded first: the branches of a tail's load between product and
// sum would keep the compiler from contracting them, and an element would get other bits in one loop than in another.
template <bool kResidual, typename T>
inline TILEWRIGHT_INLINE Vec<Acc<T>> dropped(Vec<Acc<T>> v, uint32_t bits, Vec<Acc<T>> scale, const T* residual,
                                             int64_t c, int64_t lanes) {
  if constexpr (kResidual) {
    const Vec<Acc<T>> added = load(residual + c, lanes);
    return fma(v, lanes_where(bits, scale), added);
  }
  return v * lanes_where(bits, scale);
}

template <bool kResidual, bool kBias, bool kStream, typename T>
inline void apply_keep_bits_as(const DropoutArgs<T>& at, int64_t n, const uint8_t* bits, int64_t offset) {
  using A = Acc<T>;
  const Vec<A> scale = broadcast<A>(static_cast<A>(at.rule.scale));
  const T *x = at.x, *residual = at.residual;
  const A* bias = at.bias;
  T* y = at.y;
  for_each_vector<A>(n, [=](int64_t c, int64_t lanes) TILEWRIGHT_INLINE {
    Vec<A> v = load(x + c, lanes);
    if constexpr (kBias) v += load(bias + c, lanes);
    v = dropped<kResidual>(v, load_bits(bits, offset + c), scale, residual, c, lanes);
    store_or_stream<kStream>(y + c, v, lanes);
  });
}

// n consecutive elements in memory, the first at the pointers of `at`; the bit of element i is offset + i.
template <bool kStream = false, typename T>
inline void apply_keep_bits(const DropoutArgs<T>& at, int64_t n, const uint8_t* bits, int64_t offset) {
  choose(at.bias != nullptr, [&](auto bias) TILEWRIGHT_INLINE {
    choose(at.residual != nullptr, [&](auto residual) TILEWRIGHT_INLINE {
      apply_keep_bits_as<residual.value, bias.value, kStream>(at, n, bits, offset);
    });
  });
}

// `args` moved on to another element (and, in the bias, to another column).
template <typename T>
inline DropoutArgs<T> moved(const DropoutArgs<T>& args, int64_t offset, int64_t column = 0) {
  DropoutArgs<T> at = args;
  at.x += offset;
  at.y += offset;
  if (at.residual != nullptr) at.residual += offset;
  if (at.bias != nullptr) at.bias += column;
  return at;
}

// What the next span will read and write, fetched while its bits are made: they keep the multiplier busy and leave
// memory idle.
template <typename T>
inline void prefetch_span(const DropoutArgs<T>& at, int64_t n) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < n; i += kLine) {
    __builtin_prefetch(at.x + i);
    __builtin_prefetch(at.y + i, 1);
    if (at.residual != nullptr) __builtin_prefetch(at.residual + i);
  }
}

inline uint64_t bytes_of_bits(int64_t n) { return static_cast<uint64_t>((n + kDropoutGroup - 1) / kDropoutGroup); }

// Elements of a whole block, whose bits go from their vectors to those of the elements without a way through memory.
constexpr int64_t kBlock = kKeepChains * kKeepGroups * kDropoutGroup;

// The words of a block's bits: made, or read where they were made before; kept where they will be read again.
template <typename T>
inline TILEWRIGHT_INLINE void block_words(const DropoutArgs<T>& args, int64_t origin, int64_t first,
                                          uint64_t (&words)[kKeepChains]) {
  const int64_t byte = first / kDropoutGroup;
  if (args.kept != nullptr) {
    for (int i = 0; i < kKeepChains; ++i) __builtin_memcpy(&words[i], args.kept + byte + i * kKeepGroups, kKeepGroups);
    return;
  }
  fill_keep_words(args.rule, static_cast<uint64_t>(origin / kDropoutGroup + byte), words);
  if (args.keep == nullptr) return;
  for (int i = 0; i < kKeepChains; ++i) __builtin_memcpy(args.keep + byte + i * kKeepGroups, &words[i], kKeepGroups);
}

// Whole blocks of elements [first, end) without a bias, where some are dropped and some are not. Element i has logical
// index origin + i; first and origin are multiples of 8. Returns where the rest begins.
template <bool kResidual, bool kStream, typename T>
inline int64_t dropout_whole_blocks(const DropoutArgs<T>& args, int64_t origin, int64_t first, int64_t end) {
  using A = Acc<T>;
  constexpr int kVectors = static_cast<int>(kKeepGroups * kDropoutGroup / kLanes<A>);  // of a word
  const Vec<A> scale = broadcast<A>(static_cast<A>(args.rule.scale));
  const T *x = args.x, *residual = args.residual;
  T* y = args.y;
  for (; first + kBlock <= end; first += kBlock) {
    uint64_t words[kKeepChains] = {};
    if constexpr (!kStream) prefetch_span(moved(args, first), kBlock);
    block_words(args, origin, first, words);
    unrolled<kKeepChains * kVectors>([&](auto i) TILEWRIGHT_INLINE {
      constexpr int kWord = i / kVectors, kPlace = i % kVectors;
      const int64_t c = first + i * kLanes<A>;
      const auto bits = static_cast<uint32_t>(words[kWord] >> (kPlace * kLanes<A>));
      store_or_stream<kStream>(y + c, dropped<kResidual>(load(x + c), bits, scale, residual, c, kLanes<A>), kLanes<A>);
    });
  }
  return first;
}

template <bool kStream, typename T>
void dropout_contiguous_as(const DropoutArgs<T>& args, int64_t begin, int64_t end) {
  SpanBits span;
  int64_t first = begin;
  if (args.bias == nullptr && !drops_nothing(args.rule) && !drops_everything(args.rule)) {
    first = args.residual != nullptr ? dropout_whole_blocks<true, kStream>(args, 0, first, end)
                                     : dropout_whole_blocks<false, kStream>(args, 0, first, end);
  }
  for (; first < end; first += kSpan) {
    const int64_t n = end - first < kSpan ? end - first : kSpan;
    if constexpr (!kStream) prefetch_span(moved(args, first), n);
    const uint8_t* bits = args.kept != nullptr ? args.kept + first / kDropoutGroup : span.bits;
    if (args.kept == nullptr) {
      fill_keep_bits_range(args.rule, first, n, span.bits);
      if (args.keep != nullptr) __builtin_memcpy(args.keep + first / kDropoutGroup, span.bits, bytes_of_bits(n));
    }
    if (args.bias == nullptr) {
      apply_keep_bits<kStream>(moved(args, first), n, bits, 0);
      continue;
    }
    for (int64_t i = 0, column = first % args.cols; i < n; column = 0) {
      const int64_t run = args.cols - column < n - i ? args.cols - column : n - i;
      apply_keep_bits(moved(args, first + i, column), run, bits, i);
      i += run;
    }
  }
}

template <typename T>
void dropout_contiguous(const DropoutArgs<T>& args, int64_t begin, int64_t end) {
  const bool streams = args.streams && can_stream(args.y, end) && args.bias == nullptr;
  choose(streams, [&](auto stream) { dropout_contiguous_as<stream.value>(args, begin, end); });
  if (streams) finish_streams();
}

// One run of a strided tensor's last dimension, through contiguous buffers.
template <typename T>
inline void apply_keep_bits_gathered(const DropoutArgs<T>& at, int64_t stride, int64_t n, const uint8_t* bits,
                                     int64_t offset) {
  T x[kSpan], residual[kSpan];
  for (int64_t i = 0; i < n; ++i) x[i] = at.x[i * stride];
  if (at.residual != nullptr) {
    for (int64_t i = 0; i < n; ++i) residual[i] = at.residual[i * stride];
  }
  DropoutArgs<T> buffered = at;
  buffered.x = buffered.y = x;
  if (at.residual != nullptr) buffered.residual = residual;
  apply_keep_bits(buffered, n, bits, offset);
  for (int64_t i = 0; i < n; ++i) at.y[i * stride] = x[i];
}

template <typename T>
void dropout_strided(const DropoutArgs<T>& args, const StridedLayout& layout, int64_t begin, int64_t end) {
  SpanBits span;
  const int64_t last = layout.dims - 1, cols = layout.sizes[last], stride = layout.strides[last];
  for (int64_t first = begin; first < end; first += kSpan) {
    const int64_t n = end - first < kSpan ? end - first : kSpan;
    fill_keep_bits_range(args.rule, first, n, span.bits);
    for (int64_t i = 0; i < n;) {
      const int64_t column = (first + i) % cols, run = cols - column < n - i ? cols - column : n - i;
      int64_t offset = column * stride, rest = (first + i) / cols;
      for (int64_t d = last - 1; d >= 0; --d) {
        offset += rest % layout.sizes[d] * layout.strides[d];
        rest /= layout.sizes[d];
      }
      if (stride == 1) {
        apply_keep_bits(moved(args, offset), run, span.bits, i);
      } else {
        apply_keep_bits_gathered(moved(args, offset), stride, run, span.bits, i);
      }
      i += run;
    }
  }
}

template <typename T>
void dropout_bias_backward(const DropoutBiasBackwardArgs<T>& args, int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  const Vec<A> scale = broadcast<A>(static_cast<A>(args.rule.scale));
  const bool wants_dx = args.dx != nullptr;
  SpanBits span;
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t column = 0; column < args.cols; column += kSpan) {
      const int64_t n = args.cols - column < kSpan ? args.cols - column : kSpan;
      const int64_t first = row * args.cols + column, offset = fill_keep_bits_range(args.rule, first, n, span.bits);
      const T* dy = args.dy + first;
      T* dx = wants_dx ? args.dx + first : nullptr;
      A* dbias = args.dbias + column;
      for_each_vector<A>(n, [&](int64_t c, int64_t lanes) TILEWRIGHT_INLINE {
        const Vec<A> v = load(dy + c, lanes) * lanes_where(load_bits(span.bits, offset + c), scale);
        if (wants_dx) store(dx + c, v, lanes);
        store(dbias + c, load(dbias + c, lanes) + v, lanes);
      });
    }
  }
}

inline void dropout_mask(const DropoutRule& rule, uint8_t* mask, int64_t begin, int64_t end) {
  SpanBits span;
  for (int64_t first = begin; first < end; first += kSpan) {
    const int64_t n = end - first < kSpan ? end - first : kSpan;
    fill_keep_bits_range(rule, first, n, span.bits);
    for (int64_t i = 0; i < n; ++i) mask[first + i] = static_cast<uint8_t>((span.bits[i >> 3] >> (i & 7)) & 1);
  }
}

}  // namespace
}  // namespace tilewright
