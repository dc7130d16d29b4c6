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

constexpr int64_t kSpan = 2048;  // elements whose bits are made at a time: 256 bytes

// Bits of one span, wherever it starts.
struct SpanBits {
  uint8_t bits[kSpan / kDropoutGroup + 1 + kKeepBitsPadding];
};

template <bool kResidual, bool kBias, typename T>
inline void apply_keep_bits_as(const DropoutArgs<T>& at, int64_t n, const uint8_t* bits, int64_t offset) {
  using A = Acc<T>;
  const Vec<A> scale = broadcast<A>(static_cast<A>(at.rule.scale));
  const T *x = at.x, *residual = at.residual;
  const A* bias = at.bias;
  T* y = at.y;
  for_each_vector<A>(n, [=](int64_t c, int64_t lanes) TILEWRIGHT_INLINE {
    Vec<A> v = load(x + c, lanes);
    if constexpr (kBias) v += load(bias + c, lanes);
    v *= scale_kept(keep_bits(bits, offset + c), scale);
    if constexpr (kResidual) v += load(residual + c, lanes);
    store(y + c, v, lanes);
  });
}

// n consecutive elements in memory, the first at the pointers of `at`; the bit of element i is offset + i.
template <typename T>
inline void apply_keep_bits(const DropoutArgs<T>& at, int64_t n, const uint8_t* bits, int64_t offset) {
  if (at.bias != nullptr) {
    if (at.residual != nullptr) return apply_keep_bits_as<true, true>(at, n, bits, offset);
    return apply_keep_bits_as<false, true>(at, n, bits, offset);
  }
  if (at.residual != nullptr) return apply_keep_bits_as<true, false>(at, n, bits, offset);
  apply_keep_bits_as<false, false>(at, n, bits, offset);
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

template <typename T>
void dropout_contiguous(const DropoutArgs<T>& args, int64_t begin, int64_t end) {
  SpanBits span;
  for (int64_t first = begin; first < end; first += kSpan) {
    const int64_t n = end - first < kSpan ? end - first : kSpan;
    fill_keep_bits_range(args.rule, first, n, span.bits);
    if (args.bias == nullptr) {
      apply_keep_bits(moved(args, first), n, span.bits, 0);
      continue;
    }
    for (int64_t i = 0, column = first % args.cols; i < n; column = 0) {
      const int64_t run = args.cols - column < n - i ? args.cols - column : n - i;
      apply_keep_bits(moved(args, first + i, column), run, span.bits, i);
      i += run;
    }
  }
}

// Eight rows of eight bits, one per byte, turned: bit j of byte i moves to bit i of byte j.
inline uint64_t transpose_8x8(uint64_t m) {
  uint64_t t = (m ^ (m >> 7)) & 0x00aa00aa00aa00aaull;
  m ^= t ^ (t << 7);
  t = (m ^ (m >> 14)) & 0x0000cccc0000ccccull;
  m ^= t ^ (t << 14);
  t = (m ^ (m >> 28)) & 0x00000000f0f0f0f0ull;
  return m ^ t ^ (t << 28);
}

// Where the bits of a tile lie: those of channel c start at bit start(c).
struct TileBits {
  const uint8_t* bits;
  int64_t first;  // logical index of the tile's first element
  int64_t minor;
  int64_t pitch;  // bytes per channel, or 0: one run of bits holds the whole sample

  int64_t start(int64_t c) const {
    if (pitch == 0) return first % kDropoutGroup + c * minor;
    return c * pitch * 8 + (first + c * minor) % kDropoutGroup;
  }
};

// Turns eight positions of all channels: bit c of turned[j * turned_pitch ...] is the bit of channel c at position j.
inline void turn_keep_bits(const TileBits& tile, int64_t position, int64_t channels, uint8_t* turned,
                           int64_t turned_pitch) {
  for (int64_t c = 0; c < channels; c += 8) {
    const int64_t count = channels - c < 8 ? channels - c : 8;
    uint64_t block = 0;
    for (int64_t i = 0; i < count; ++i) {
      block |= static_cast<uint64_t>(keep_bits(tile.bits, tile.start(c + i) + position) & 0xffu) << (8 * i);
    }
    block = transpose_8x8(block);
    for (int j = 0; j < 8; ++j) turned[j * turned_pitch + c / 8] = static_cast<uint8_t>(block >> (8 * j));
  }
}

template <typename T>
void dropout_transposed(const DropoutArgs<T>& args, const TransposedLayout& layout, int64_t begin, int64_t end,
                        uint8_t* scratch) {
  const int64_t channels = layout.major, minor = layout.minor;
  const int64_t tiles = (minor + layout.tile - 1) / layout.tile;
  const int64_t turned_pitch = channels / 8 + kKeepBitsPadding;
  uint8_t* turned = scratch;
  uint8_t* bits = scratch + 8 * turned_pitch;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t sample = index / tiles * channels * minor, position = index % tiles * layout.tile;
    const int64_t count = minor - position < layout.tile ? minor - position : layout.tile;
    const TileBits tile{bits, sample + position, minor, tiles == 1 ? 0 : layout.tile / 8 + 1};
    if (tiles == 1) {
      fill_keep_bits_range(args.rule, sample, channels * minor, bits);
    } else {
      // What a channel's bits write beyond its pitch is overwritten by the next channel's.
      for (int64_t c = 0; c < channels; ++c) {
        fill_keep_bits_range(args.rule, tile.first + c * minor, count, bits + c * tile.pitch);
      }
    }
    for (int64_t p = 0; p < count; p += 8) {
      turn_keep_bits(tile, p, channels, turned, turned_pitch);
      for (int64_t j = 0; j < 8 && p + j < count; ++j) {
        const int64_t row = sample + (position + p + j) * channels;
        apply_keep_bits(moved(args, row), channels, turned + j * turned_pitch, 0);
      }
    }
  }
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
        const Vec<A> v = load(dy + c, lanes) * scale_kept(keep_bits(span.bits, offset + c), scale);
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

template <typename T>
void fill_dropout(TypedKernels<T>& table) {
  table.dropout = {dropout_contiguous<T>, dropout_transposed<T>, dropout_strided<T>, dropout_bias_backward<T>,
                   dropout_mask};
}

}  // namespace
}  // namespace tilewright
