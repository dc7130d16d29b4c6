// The dropout mask as bits, in logical order: what every kernel with dropout reads. common/philox.h defines the bits;
// here they are made many groups at a time.
//
// A vector of 64-bit lanes holds one counter word of one group per lane, in the lane's low half; the high halves hold
// leftovers of the products and are never read. A round is then two 32x32 -> 64 multiplications, two shifts and two
// three-way xors for kKeepGroups groups of 8 elements.
#pragma once
#if defined(TILEWRIGHT_ISA_IS_BASELINE) && defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "common/philox.h"
#include "cpu/kernels/lane_bits.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

typedef uint64_t VecU64 __attribute__((vector_size(kVectorBytes)));
constexpr int64_t kKeepGroups = kVectorBytes / 8;  // groups per vector, and bytes of keep bits per vector

// fill_keep_bits writes whole vectors, and load_bits reads 4 bytes: a buffer of bits has this many bytes to spare.
constexpr int64_t kKeepBitsPadding = kKeepGroups + 4;

// What one vector of groups decides: byte g of `keep` holds the bits of group g, `equal` marks numbers equal to hi.
struct KeepWord {
  uint64_t keep;
  uint64_t equal;
};

// multiply_low(a, b): products of the low halves of 64-bit lanes. lane_groups: which group each lane works on, such
// that pack_keep_bits gives the groups in order. pack_keep_bits: the numbers of w0 ... w3 compared with hi.
#if defined(TILEWRIGHT_ISA_IS_AVX512)

inline VecU64 multiply_low(VecU64 a, VecU64 b) {
  return bit_cast<VecU64>(_mm512_mul_epu32(bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
}
inline VecU64 lane_groups() { return VecU64{0, 4, 1, 5, 2, 6, 3, 7}; }
inline KeepWord pack_keep_bits(VecU64 w0, VecU64 w1, VecU64 w2, VecU64 w3, uint32_t hi) {
  const auto join = [](VecU64 even, VecU64 odd) TILEWRIGHT_INLINE {
    return _mm512_mask_shuffle_epi32(bit_cast<__m512i>(even), 0xAAAA, bit_cast<__m512i>(odd), _MM_PERM_CCAA);
  };
  const __m512i first = join(w0, w1), second = join(w2, w3);
  const __m512i low = _mm512_unpacklo_epi64(first, second), high = _mm512_unpackhi_epi64(first, second);
  const __m512i threshold = _mm512_set1_epi16(static_cast<short>(hi));
  const auto pair = [](__mmask32 a, __mmask32 b)
                        TILEWRIGHT_INLINE { return static_cast<uint64_t>(_mm512_kunpackd(b, a)); };
  return {pair(_mm512_cmpge_epu16_mask(low, threshold), _mm512_cmpge_epu16_mask(high, threshold)),
          pair(_mm512_cmpeq_epu16_mask(low, threshold), _mm512_cmpeq_epu16_mask(high, threshold))};
}

#elif defined(TILEWRIGHT_ISA_IS_AVX2)

inline VecU64 multiply_low(VecU64 a, VecU64 b) {
  return bit_cast<VecU64>(_mm256_mul_epu32(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
}
inline VecU64 lane_groups() { return VecU64{0, 1, 2, 3}; }
inline KeepWord pack_keep_bits(VecU64 w0, VecU64 w1, VecU64 w2, VecU64 w3, uint32_t hi) {
  const auto join = [](VecU64 even, VecU64 odd) TILEWRIGHT_INLINE {
    return _mm256_blend_epi32(bit_cast<__m256i>(even), bit_cast<__m256i>(odd << 32), 0xAA);
  };
  const __m256i first = join(w0, w1), second = join(w2, w3);
  // Only signed comparison exists: both sides are shifted down by 2^15.
  const __m256i sign = _mm256_set1_epi16(static_cast<short>(0x8000));
  const __m256i low = _mm256_xor_si256(_mm256_unpacklo_epi64(first, second), sign);
  const __m256i high = _mm256_xor_si256(_mm256_unpackhi_epi64(first, second), sign);
  const __m256i threshold = _mm256_set1_epi16(static_cast<short>(hi ^ 0x8000u));
  const auto pack = [](__m256i a, __m256i b) TILEWRIGHT_INLINE {
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_packs_epi16(a, b)));
  };
  const uint32_t dropped = pack(_mm256_cmpgt_epi16(threshold, low), _mm256_cmpgt_epi16(threshold, high));
  return {~dropped, pack(_mm256_cmpeq_epi16(threshold, low), _mm256_cmpeq_epi16(threshold, high))};
}

#elif defined(__SSE2__)

inline VecU64 multiply_low(VecU64 a, VecU64 b) {
  return bit_cast<VecU64>(_mm_mul_epu32(bit_cast<__m128i>(a), bit_cast<__m128i>(b)));
}
inline VecU64 lane_groups() { return VecU64{0, 1}; }
inline KeepWord pack_keep_bits(VecU64 w0, VecU64 w1, VecU64 w2, VecU64 w3, uint32_t hi) {
  const __m128i first = bit_cast<__m128i>((w0 & 0xffffffffu) | (w1 << 32));
  const __m128i second = bit_cast<__m128i>((w2 & 0xffffffffu) | (w3 << 32));
  // Only signed comparison exists: both sides are shifted down by 2^15.
  const __m128i sign = _mm_set1_epi16(static_cast<short>(0x8000));
  const __m128i low = _mm_xor_si128(_mm_unpacklo_epi64(first, second), sign);
  const __m128i high = _mm_xor_si128(_mm_unpackhi_epi64(first, second), sign);
  const __m128i threshold = _mm_set1_epi16(static_cast<short>(hi ^ 0x8000u));
  const auto pack = [](__m128i a, __m128i b)
                        TILEWRIGHT_INLINE { return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(a, b))); };
  const uint32_t dropped = pack(_mm_cmpgt_epi16(threshold, low), _mm_cmpgt_epi16(threshold, high));
  return {~dropped, pack(_mm_cmpeq_epi16(threshold, low), _mm_cmpeq_epi16(threshold, high))};
}

#else

inline VecU64 multiply_low(VecU64 a, VecU64 b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
inline VecU64 lane_groups() { return VecU64{0, 1}; }
inline KeepWord pack_keep_bits(VecU64 w0, VecU64 w1, VecU64 w2, VecU64 w3, uint32_t hi) {
  KeepWord result{0, 0};
  for (int group = 0; group < kKeepGroups; ++group) {
    const uint64_t words[4] = {w0[group], w1[group], w2[group], w3[group]};
    for (int i = 0; i < kDropoutGroup; ++i) {
      const uint32_t number = static_cast<uint32_t>(words[i / 2] >> (16 * (i % 2))) & 0xffffu;
      result.keep |= static_cast<uint64_t>(number >= hi) << (8 * group + i);
      result.equal |= static_cast<uint64_t>(number == hi) << (8 * group + i);
    }
  }
  return result;
}

#endif

// Keep bits of the groups from `first` on, of as many groups as a vector has lanes, group by group.
__attribute__((noinline)) uint64_t keep_word_by_groups(const DropoutRule& rule, uint64_t first) {
  uint64_t word = 0;
  for (int64_t group = 0; group < kKeepGroups; ++group) {
    word |= static_cast<uint64_t>(keep_bits_of_group(rule, first + static_cast<uint64_t>(group))) << (8 * group);
  }
  return word;
}

// words[i]: the keep bits of the i-th kKeepGroups groups from `first` on. kChains vectors at once: a round's latency is
// five cycles or more, and the chains fill them.
//
// Groups of one call differ in the counter's lowest word alone, so the first round's second product and the second
// round's first are scalars, and the first product of all is a sum: three multiplications of twenty and two shifts
// fewer.
template <int kChains>
inline TILEWRIGHT_INLINE void fill_keep_words(const DropoutRule& rule, uint64_t first, uint64_t (&words)[kChains]) {
  const uint32_t low = static_cast<uint32_t>(first), high = static_cast<uint32_t>(first >> 32);
  if (__builtin_expect(low > 0xffffffffu - kChains * kKeepGroups, 0)) {  // the next word would change within the call
    for (int i = 0; i < kChains; ++i)
      words[i] = keep_word_by_groups(rule, first + static_cast<uint64_t>(i * kKeepGroups));
    return;
  }
  uint32_t key0 = rule.key.word[0], key1 = rule.key.word[1];
  const VecU64 multiplier0 = VecU64{} + kPhiloxMultiplier0, multiplier1 = VecU64{} + kPhiloxMultiplier1;
  constexpr uint64_t kDomainProduct = uint64_t{kPhiloxMultiplier1} * kDomainNumbers;
  const uint32_t word0 = static_cast<uint32_t>(kDomainProduct >> 32) ^ high ^ key0;
  const uint64_t word0_product = uint64_t{kPhiloxMultiplier0} * word0;
  const VecU64 lane_products = multiply_low(multiplier0, lane_groups());
  VecU64 c0[kChains], c1[kChains], c2[kChains], c3[kChains];
  const uint32_t first_key1 = key1;
  key0 += kPhiloxWeyl0;
  key1 += kPhiloxWeyl1;
  unrolled<kChains>([&](auto chain) TILEWRIGHT_INLINE {
    const uint64_t group = low + static_cast<uint64_t>(chain * kKeepGroups);
    const VecU64 product = lane_products + uint64_t{kPhiloxMultiplier0} * group;
    c1[chain] = multiply_low(multiplier1, (product >> 32) ^ first_key1);
    c0[chain] = (c1[chain] >> 32) ^ (static_cast<uint32_t>(kDomainProduct) ^ key0);
    c2[chain] = product ^ (static_cast<uint32_t>(word0_product >> 32) ^ key1);
    c3[chain] = VecU64{} + static_cast<uint32_t>(word0_product);
  });
#pragma GCC unroll 10
  for (int round = 2; round < kPhiloxRounds; ++round) {
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
    const VecU64 keys0 = VecU64{} + key0, keys1 = VecU64{} + key1;
    unrolled<kChains>([&](auto chain) TILEWRIGHT_INLINE {
      const VecU64 product0 = multiply_low(multiplier0, c0[chain]), product1 = multiply_low(multiplier1, c2[chain]);
      c0[chain] = (product1 >> 32) ^ c1[chain] ^ keys0;
      c1[chain] = product1;
      c2[chain] = (product0 >> 32) ^ c3[chain] ^ keys1;
      c3[chain] = product0;
    });
  }
  uint64_t any_equal = 0;
  uint64_t equal[kChains];
  unrolled<kChains>([&](auto chain) TILEWRIGHT_INLINE {
    const KeepWord word = pack_keep_bits(c0[chain], c1[chain], c2[chain], c3[chain], rule.hi);
    words[chain] = word.keep;
    equal[chain] = word.equal;
    any_equal |= word.equal;
  });
  // A number equal to hi is decided by the second domain: once in 65536 elements.
  if (__builtin_expect(any_equal != 0 && rule.lo != 0, 0)) {
    for (int i = 0; i < kChains; ++i) {
      if (equal[i] != 0) words[i] = keep_word_by_groups(rule, first + static_cast<uint64_t>(i * kKeepGroups));
    }
  }
}

constexpr int kKeepChains = 4;

// bits[g] = keep bits of group first + g for g < groups; may write kKeepGroups - 1 bytes more.
inline void fill_keep_bits(const DropoutRule& rule, uint64_t first, int64_t groups, uint8_t* bits) {
  if (drops_nothing(rule) || drops_everything(rule)) {
    __builtin_memset(bits, drops_nothing(rule) ? 0xff : 0, static_cast<uint64_t>(groups));
    return;
  }
  int64_t group = 0;
  const auto fill = [&]<int kChains>() TILEWRIGHT_INLINE {
    uint64_t words[kChains];
    fill_keep_words(rule, first + static_cast<uint64_t>(group), words);
    for (int i = 0; i < kChains; ++i) __builtin_memcpy(bits + group + i * kKeepGroups, &words[i], kKeepGroups);
    group += kChains * kKeepGroups;
  };
  while (group + kKeepChains * kKeepGroups <= groups) fill.template operator()<kKeepChains>();
  while (group < groups) fill.template operator()<1>();
}

// Keep bits of the logical elements [first, first + n). The bit of element first + i is bit offset + i of `bits`, where
// offset = first % 8 is returned.
inline int64_t fill_keep_bits_range(const DropoutRule& rule, int64_t first, int64_t n, uint8_t* bits) {
  const int64_t offset = first % kDropoutGroup;
  fill_keep_bits(rule, static_cast<uint64_t>(first / kDropoutGroup), (offset + n + kDropoutGroup - 1) / kDropoutGroup,
                 bits);
  return offset;
}

}  // namespace
}  // namespace tilewright
