// Dropout where memory runs across the logical order (TransposedLayout): the bits of a tile are made along the logical
// index, then turned, eight positions of all channels at a time, into rows of bits that lie as memory does.
#pragma once
#include "cpu/kernels/dropout_spans.h"

namespace tilewright {
namespace {

// turn_keep_bytes: bytes[c] holds eight positions of channel c; bit c of turned[j * pitch ...] becomes bit j of byte c,
// for kTurnedChannels channels.
#if defined(TILEWRIGHT_ISA_IS_AVX512)
constexpr int64_t kTurnedChannels = 64;
inline void turn_keep_bytes(const uint8_t* bytes, uint8_t* turned, int64_t pitch) {
  __m512i v = _mm512_loadu_si512(bytes);
  for (int j = 7; j >= 0; --j) {
    const uint64_t row = _mm512_movepi8_mask(v);
    __builtin_memcpy(turned + j * pitch, &row, sizeof(row));
    v = _mm512_add_epi8(v, v);
  }
}
#elif defined(TILEWRIGHT_ISA_IS_AVX2)
constexpr int64_t kTurnedChannels = 32;
inline void turn_keep_bytes(const uint8_t* bytes, uint8_t* turned, int64_t pitch) {
  __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  for (int j = 7; j >= 0; --j) {
    const int row = _mm256_movemask_epi8(v);
    __builtin_memcpy(turned + j * pitch, &row, sizeof(row));
    v = _mm256_add_epi8(v, v);
  }
}
#else
constexpr int64_t kTurnedChannels = 8;
inline void turn_keep_bytes(const uint8_t* bytes, uint8_t* turned, int64_t pitch) {
  uint64_t m;
  __builtin_memcpy(&m, bytes, sizeof(m));
  uint64_t t = (m ^ (m >> 7)) & 0x00aa00aa00aa00aaull;
  m ^= t ^ (t << 7);
  t = (m ^ (m >> 14)) & 0x0000cccc0000ccccull;
  m ^= t ^ (t << 14);
  t = (m ^ (m >> 28)) & 0x00000000f0f0f0f0ull;
  m ^= t ^ (t << 28);
  for (int j = 0; j < 8; ++j) turned[j * pitch] = static_cast<uint8_t>(m >> (8 * j));
}
#endif

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
  uint8_t bytes[kTurnedChannels] = {};
  for (int64_t c = 0; c < channels; c += kTurnedChannels) {
    const int64_t count = channels - c < kTurnedChannels ? channels - c : kTurnedChannels;
    for (int64_t i = 0; i < count; ++i) {
      bytes[i] = static_cast<uint8_t>(load_bits(tile.bits, tile.start(c + i) + position));
    }
    turn_keep_bytes(bytes, turned + c / 8, turned_pitch);
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

}  // namespace
}  // namespace tilewright
