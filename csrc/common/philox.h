// The dropout mask: one definition for C++, CUDA, Triton (python/tilewright/triton) and the tests
// (python/tilewright/testing/philox.py), which agree bit for bit.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), counter based:
//   key      {seed low word, seed high word}
//   counter  {group low word, group high word, domain, 0},  group = (row-major logical element index) / 8
// One call gives the four words of a group and so eight 16-bit numbers, one per element:
//   number of element 8 * group + i  =  the low half of word[i / 2] for even i, its high half for odd i
// (on a little-endian machine: the words seen as uint16_t[8]).
//
// An element is dropped with probability threshold / 2^32 at the cost of 16 bits. With threshold = hi * 2^16 + lo:
//   dropped  iff  number < hi,  or number == hi and extra < lo
// where `extra` is the element's number in the second domain; it is looked at once in 65536 elements.
#pragma once
#include <cstdint>

#include "common/macros.h"

namespace tilewright {

struct PhiloxKey {
  uint32_t word[2];
};
struct PhiloxWords {
  uint32_t word[4];
};

// How many elements are dropped, and what the kept ones are multiplied with.
struct DropoutRate {
  uint32_t hi;   // threshold >> 16, 0 ... 65536; 65536 drops everything (p = 1)
  uint32_t lo;   // threshold & 0xffff; hi = lo = 0 drops nothing (p = 0)
  double scale;  // 1 / (1 - p), 0 for p = 1
};

// Which elements a call drops.
struct DropoutRule : DropoutRate {
  PhiloxKey key;
};

namespace {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

constexpr int64_t kDropoutGroup = 8;  // elements per Philox call
constexpr uint32_t kDomainNumbers = 0, kDomainExtra = 1;

TILEWRIGHT_HOST_DEVICE inline PhiloxKey philox_key(uint64_t seed) {
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
}

TILEWRIGHT_HOST_DEVICE inline PhiloxWords philox4x32_10(PhiloxWords counter, PhiloxKey key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * counter.word[0];
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key.word[0], static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key.word[1],
                static_cast<uint32_t>(product0)}};
    key.word[0] += kPhiloxWeyl0;
    key.word[1] += kPhiloxWeyl1;
  }
  return counter;
}

inline DropoutRate dropout_rate(double p) {
  constexpr double kRange = 4294967296.0;  // 2^32
  if (p <= 0) return {0, 0, 1.0};
  if (p >= 1) return {65536, 0, 0.0};
  // Nearest, but never nothing and never everything.
  uint64_t threshold = static_cast<uint64_t>(p * kRange + 0.5);
  if (threshold < 1) threshold = 1;
  if (threshold > 0xffffffffu) threshold = 0xffffffffu;
  return {static_cast<uint32_t>(threshold >> 16), static_cast<uint32_t>(threshold & 0xffffu), 1.0 / (1.0 - p)};
}

inline DropoutRule dropout_rule(uint64_t seed, double p) { return {dropout_rate(p), philox_key(seed)}; }

TILEWRIGHT_HOST_DEVICE inline bool drops_nothing(const DropoutRate& rule) { return rule.hi == 0 && rule.lo == 0; }
TILEWRIGHT_HOST_DEVICE inline bool drops_everything(const DropoutRate& rule) { return rule.hi > 0xffffu; }

TILEWRIGHT_HOST_DEVICE inline uint32_t number_of(const PhiloxWords& words, int i) {
  return (words.word[i / 2] >> (16 * (i % 2))) & 0xffffu;
}

TILEWRIGHT_HOST_DEVICE inline PhiloxWords group_words(const DropoutRule& rule, uint64_t group, uint32_t domain) {
  return philox4x32_10({{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), domain, 0}}, rule.key);
}

// The eight decisions of a group: bit i is set where element 8 * group + i is kept.
TILEWRIGHT_HOST_DEVICE inline uint32_t keep_bits_of_group(const DropoutRule& rule, uint64_t group) {
  const PhiloxWords numbers = group_words(rule, group, kDomainNumbers);
  uint32_t keep = 0, equal = 0;
  for (int i = 0; i < kDropoutGroup; ++i) {
    const uint32_t number = number_of(numbers, i);
    keep |= static_cast<uint32_t>(number >= rule.hi) << i;
    equal |= static_cast<uint32_t>(number == rule.hi) << i;
  }
  if (equal == 0 || rule.lo == 0) return keep;
  const PhiloxWords extras = group_words(rule, group, kDomainExtra);
  for (int i = 0; i < kDropoutGroup; ++i) {
    if (((equal >> i) & 1u) != 0 && number_of(extras, i) < rule.lo) keep &= ~(1u << i);
  }
  return keep;
}

}  // namespace
}  // namespace tilewright
