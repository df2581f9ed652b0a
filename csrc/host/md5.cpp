// SPDX-License-Identifier: MIT
#include "host/md5.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace nasfast {
namespace {

constexpr size_t kBlockBytes = 64;
constexpr size_t kLengthBytes = 8;
// Left rotation of each of the four rounds, by step modulo 4.
constexpr int kRotations[4][4] = {
    {7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};

using State = std::array<uint32_t, 4>;

// What each step adds: the first 32 bits of the fraction of |sin(step)|, steps from 1.
std::array<uint32_t, 64> make_addends() {
  std::array<uint32_t, 64> addends;
  for (int step = 0; step < 64; ++step) {
    addends[step] = static_cast<uint32_t>(std::abs(std::sin(step + 1.0)) * 4294967296.0);
  }
  return addends;
}

const std::array<uint32_t, 64> kAddends = make_addends();

template <int Round>
inline uint32_t mix(uint32_t b, uint32_t c, uint32_t d) {
  if constexpr (Round == 0) return d ^ (b & (c ^ d));
  if constexpr (Round == 1) return c ^ (d & (b ^ c));
  if constexpr (Round == 2) return b ^ c ^ d;
  return c ^ (b | ~d);
}

// Sixteen steps; step i reads word (first + stride * i) modulo 16.
template <int Round, int First, int Stride>
inline void run_round(const std::array<uint32_t, 16>& words, State& state) {
  auto [a, b, c, d] = state;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    const uint32_t sum =
        a + mix<Round>(b, c, d) + words[(First + Stride * i) % 16] + kAddends[16 * Round + i];
    a = d;
    d = c;
    c = b;
    b += std::rotl(sum, kRotations[Round][i % 4]);
  }
  state = {a, b, c, d};
}

void add_block(const uint8_t* block, State& state) {
  std::array<uint32_t, 16> words;
  for (int i = 0; i < 16; ++i) {  // little-endian, whatever the machine is
    words[i] = static_cast<uint32_t>(block[4 * i]) | static_cast<uint32_t>(block[4 * i + 1]) << 8 |
               static_cast<uint32_t>(block[4 * i + 2]) << 16 |
               static_cast<uint32_t>(block[4 * i + 3]) << 24;
  }
  State next = state;
  run_round<0, 0, 1>(words, next);
  run_round<1, 1, 5>(words, next);
  run_round<2, 5, 3>(words, next);
  run_round<3, 0, 7>(words, next);
  for (int i = 0; i < 4; ++i) state[i] += next[i];
}

}  // namespace

Digest md5(std::string_view message) {
  State state = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
  const auto* bytes = reinterpret_cast<const uint8_t*>(message.data());
  const size_t whole = message.size() / kBlockBytes * kBlockBytes;
  for (size_t at = 0; at < whole; at += kBlockBytes) add_block(bytes + at, state);

  // The rest, a one bit, zeros, and the length in bits at the end of a block.
  uint8_t last[2 * kBlockBytes] = {};
  const size_t rest = message.size() - whole;
  if (rest > 0) std::memcpy(last, bytes + whole, rest);
  last[rest] = 0x80;
  const size_t size = rest + 1 + kLengthBytes <= kBlockBytes ? kBlockBytes : 2 * kBlockBytes;
  const uint64_t bits = static_cast<uint64_t>(message.size()) * 8;
  for (size_t i = 0; i < kLengthBytes; ++i) last[size - kLengthBytes + i] = bits >> (8 * i) & 0xff;
  for (size_t at = 0; at < size; at += kBlockBytes) add_block(last + at, state);

  Digest digest;
  for (size_t i = 0; i < digest.size(); ++i) digest[i] = state[i / 4] >> (8 * (i % 4)) & 0xff;
  return digest;
}

char* write_hex(const Digest& digest, char* out) {
  constexpr char kDigits[] = "0123456789abcdef";
  for (const uint8_t byte : digest) {
    *out++ = kDigits[byte >> 4];
    *out++ = kDigits[byte & 15];
  }
  return out;
}

}  // namespace nasfast
