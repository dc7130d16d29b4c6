// The mask of common/philox.h in registers.
//
// A number is kept in the upper half of 32 bits, with the element's `extra` below it where that matters, so that one
// comparison with the 32-bit threshold decides: (number, extra) >= (hi, lo). The extras of a group are made only where
// one of its numbers equals hi, which is once in 65536 elements; elsewhere what stands below a number changes nothing.
#pragma once
#include "cuda/dropout.h"

namespace tilewright::gpu {

// Elements at ... at + N - 1 of a group; N divides 8 and at.
template <int N>
__device__ __forceinline__ void upper_halves(const PhiloxWords& words, int at, uint32_t (&number)[N]) {
  if constexpr (N == 1) {
    const uint32_t low = at < 2 ? words.word[0] : words.word[1], high = at < 6 ? words.word[2] : words.word[3];
    const uint32_t word = at < 4 ? low : high;
    number[0] = at % 2 == 0 ? word << 16 : word;
  } else {
    uint32_t word[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      word[i] = words.word[i];
#pragma unroll
      for (int part = 1; part < 8 / N; ++part) word[i] = at == part * N ? words.word[part * (N / 2) + i] : word[i];
    }
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      number[i] = word[i / 2] << 16;
      number[i + 1] = word[i / 2];
    }
  }
}

template <typename A>
class Keep {
 public:
  __device__ __forceinline__ explicit Keep(const Dropout<A>& dropout)
      : key_(philox_key(dropout.seed == nullptr ? 0 : static_cast<uint64_t>(*dropout.seed))),
        drops_(dropout.seed != nullptr),
        threshold_(dropout.threshold),
        everything_(dropout.everything),
        scale_(dropout.scale) {}

  // What elements first ... first + N - 1 are multiplied with. They lie in one group: N divides 8 and first.
  template <int N>
  __device__ __forceinline__ void factors(int64_t first, A (&factor)[N]) const {
    if (!drops_) {
#pragma unroll
      for (int i = 0; i < N; ++i) factor[i] = scale_;
      return;
    }
    uint32_t number[N];
    decisive_numbers(first, number);
#pragma unroll
    for (int i = 0; i < N; ++i) factor[i] = number[i] >= threshold_ ? scale_ : A(0);
  }

  // The factors from the bits of a group.
  __device__ __forceinline__ void factors_of_bits(uint32_t bits, A (&factor)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) factor[i] = ((bits >> i) & 1u) != 0 ? scale_ : A(0);
  }
  __device__ __forceinline__ A factor_of_bit(bool kept) const { return kept ? scale_ : A(0); }

  // Bit i is set where element 8 * group + i is kept.
  __device__ __forceinline__ uint32_t bits_of_group(int64_t group) const {
    if (everything_) return 0;
    uint32_t number[8], bits = 0;
    decisive_numbers(group * 8, number);
#pragma unroll
    for (int i = 0; i < 8; ++i) bits |= static_cast<uint32_t>(number[i] >= threshold_) << i;
    return bits;
  }

 private:
  __device__ __forceinline__ PhiloxWords words(uint64_t group, uint32_t domain) const {
    return philox4x32_10({{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), domain, 0}}, key_);
  }

  template <int N>
  __device__ __forceinline__ void decisive_numbers(int64_t first, uint32_t (&number)[N]) const {
    const uint64_t group = static_cast<uint64_t>(first) / 8;
    const int at = N == 8 ? 0 : static_cast<int>(first & 7);
    upper_halves(words(group, kDomainNumbers), at, number);
    if ((threshold_ & 0xffffu) == 0) return;
    bool equal = false;
#pragma unroll
    for (int i = 0; i < N; ++i) equal = equal || (number[i] ^ threshold_) < 0x10000u;
    if (!equal) return;
    uint32_t extra[N];
    upper_halves(words(group, kDomainExtra), at, extra);
#pragma unroll
    for (int i = 0; i < N; ++i) number[i] = (number[i] & 0xffff0000u) | extra[i] >> 16;
  }

  PhiloxKey key_;
  bool drops_;
  uint32_t threshold_;
  bool everything_;
  A scale_;
};

}  // namespace tilewright::gpu
