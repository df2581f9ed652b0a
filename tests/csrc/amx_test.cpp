// SPDX-License-Identifier: MIT
// Convolutions on AMX tiles: the kernels' own body over emulated tiles, and over the real ones
// where there are any, against the definition and against the AVX-512 kernels. What follows the
// products needs AVX512_BF16; without it the test is skipped.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/cpu/gradients.h"
#include "kernels/cpu/isa.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace nasfast::kernels::cpu {

// Defined at the foot of this file, where the compiler may use AVX-512.
extern const Kernels kernels_emulated;
struct TileCounts {
  int64_t loads, dots;
};
TileCounts take_tile_counts();
// sum += a * b as TDPBF16PS; all [16, 16] entries.
void emulate_dot(float* sum, const uint32_t* a, const uint32_t* b);

namespace {

struct Shape {
  int32_t in, out, kernel, stride, height, width;
  int32_t out_height() const { return (height + stride - 1) / stride; }
  int32_t out_width() const { return (width + stride - 1) / stride; }
  std::string name() const {
    return std::to_string(in) + "->" + std::to_string(out) + " kernel " + std::to_string(kernel) +
           " stride " + std::to_string(stride) + ", " + std::to_string(height) + "x" +
           std::to_string(width);
  }
};

void fail(const Shape& shape, const char* who, const std::string& what) {
  check::fail(__FILE__, __LINE__, shape.name() + ", " + who + ": " + what);
}

float from_bfloat16(uint32_t bits) {
  bits <<= 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
uint32_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

#include "amx_rows.inl"

// The definition, for one image and one output, and the sum of the terms' magnitudes.
struct Exact {
  double value = 0, size = 0;
};
Exact define(const Problem& problem, int32_t y, int32_t x, int32_t o, int32_t image) {
  const Shape& s = problem.shape;
  Exact sum;
  for (int32_t dy = 0; dy < s.kernel; ++dy) {
    for (int32_t dx = 0; dx < s.kernel; ++dx) {
      const int32_t sy = y * s.stride + dy - s.kernel / 2, sx = x * s.stride + dx - s.kernel / 2;
      if (sy < 0 || sy >= s.height || sx < 0 || sx >= s.width) continue;
      for (int32_t c = 0; c < s.in; ++c) {
        const float w =
            problem.weight[static_cast<size_t>(((o * s.in + c) * s.kernel + dy) * s.kernel + dx)];
        const double term = double{w} * double{from_bfloat16(problem.in.at(sy, sx, c, image))};
        sum.value += term;
        sum.size += std::abs(term);
      }
    }
  }
  return sum;
}

constexpr double kFloatRounding = 1.0 / (1 << 24);    // half a unit in the last place, relative
constexpr double kBfloat16Rounding = 1.0 / (1 << 8);  // likewise

void check_against_definition(const Problem& problem, bool integers, const char* who,
                              const Result& result) {
  const Shape& s = problem.shape;
  const double terms = s.in * s.kernel * s.kernel;
  const double pixels = s.out_height() * s.out_width();
  int wrong = 0, wrong_statistics = 0;
  for (const int32_t image : {0, 11}) {  // the comparison of kernels looks at all of them
    for (int32_t o = 0; o < s.out; ++o) {
      const int32_t at = o * kBlockImages + image;
      const Moments& m = result.moments;
      double sum = 0, sum_square = 0, size = 0;
      for (int32_t y = 0; y < s.out_height(); ++y) {
        for (int32_t x = 0; x < s.out_width(); ++x) {
          const Exact want = define(problem, y, x, o, image);
          const double got = from_bfloat16(result.out.at(y, x, o, image));
          // Any order of float32 additions, each rounded, and then one rounding to bfloat16. Of
          // integers the latter alone is left, and it is the same one.
          const double sums = terms * kFloatRounding * want.size;
          const double tolerance = sums + kBfloat16Rounding * (std::abs(want.value) + sums);
          const double rounded = from_bfloat16(to_bfloat16(static_cast<float>(want.value)));
          wrong += integers ? got != rounded : !(std::abs(got - want.value) <= tolerance);
          // Statistics are those of the numbers that were written.
          sum += got - m.pilot[at];
          sum_square += (got - m.pilot[at]) * (got - m.pilot[at]);
          size += std::abs(got - m.pilot[at]);
        }
      }
      // One rounding for the difference from the pilot, one for every addition.
      const double rounding = (pixels + 3) * kFloatRounding;
      wrong_statistics += m.pilot[at] != from_bfloat16(result.out.at(0, 0, o, image));
      wrong_statistics += !(std::abs(m.total[at] - sum) <= rounding * size);
      wrong_statistics += !(std::abs(m.total_square[at] - sum_square) <= rounding * sum_square);
    }
  }
  if (wrong) fail(s, who, std::to_string(wrong) + " results differ from the definition");
  if (wrong_statistics) fail(s, who, std::to_string(wrong_statistics) + " statistics differ");
}

// Of integers everything is equal, statistics too, since both kernels add pixels from left to
// right.
void check_equal(const Shape& s, const char* who, const Result& a, const Result& b) {
  for (int32_t y = 0; y < s.out_height(); ++y) {
    const auto row = static_cast<size_t>(y);
    if (std::memcmp(a.out.rows[row]->data<char>(), b.out.rows[row]->data<char>(),
                    static_cast<size_t>(s.out_width() * a.out.pitch * 4)) != 0) {
      return fail(s, who, "row " + std::to_string(y) + " differs from AVX-512");
    }
  }
  const auto count = static_cast<size_t>(s.out * kBlockImages);
  if (std::memcmp(a.moments.pilot, b.moments.pilot, count * 4) != 0 ||
      std::memcmp(a.moments.total, b.moments.total, count * 8) != 0 ||
      std::memcmp(a.moments.total_square, b.moments.total_square, count * 8) != 0) {
    fail(s, who, "statistics differ from AVX-512");
  }
}

// Both are within the tolerance of `check_against_definition` of the truth. The magnitudes of terms
// are at most 1, so `terms` bounds their sum.
void check_close(const Shape& s, const char* who, const Result& a, const Result& b) {
  const double terms = s.in * s.kernel * s.kernel, sums = terms * kFloatRounding * terms;
  for (int32_t y = 0; y < s.out_height(); ++y) {
    for (int32_t x = 0; x < s.out_width(); ++x) {
      for (int32_t o = 0; o < s.out; ++o) {
        for (int32_t i = 0; i < kBlockImages; ++i) {
          const double left = from_bfloat16(a.out.at(y, x, o, i));
          const double right = from_bfloat16(b.out.at(y, x, o, i));
          if (!(std::abs(left - right) <= 2 * sums + 2.02 * kBfloat16Rounding * std::abs(left))) {
            return fail(s, who, "differs from AVX-512 by more than rounding");
          }
        }
      }
    }
  }
}

bool are_intact(const Rows& rows) {
  return std::ranges::all_of(rows.rows, [](const auto& row) { return row->is_intact(); });
}

void check_shape(const Shape& shape, const char* who, const Kernels& kernels,
                 std::mt19937& random) {
  const Kernels& vectors = kernels_of(Isa::kAvx512Bf16, Precision::kBf16);
  for (const bool integers : {true, false}) {
    const Problem problem = make_problem(shape, integers, random);
    Result got(shape), unmeasured(shape), other(shape);
    run(kernels, problem, true, got);
    run(kernels, problem, false, unmeasured);
    run(vectors, problem, true, other);
    check_against_definition(problem, integers, who, got);
    if (integers) {
      check_equal(shape, who, got, other);
    } else {
      check_close(shape, who, got, other);
    }
    for (int32_t y = 0; y < shape.out_height(); ++y) {
      const auto row = static_cast<size_t>(y);
      if (std::memcmp(got.out.rows[row]->data<char>(), unmeasured.out.rows[row]->data<char>(),
                      static_cast<size_t>(shape.out_width() * got.out.pitch * 4)) != 0) {
        fail(shape, who, "statistics change the result");
      }
    }
    if (!are_intact(got.out) || !are_intact(unmeasured.out) || !got.floats.is_intact() ||
        !got.doubles.is_intact()) {
      fail(shape, who, "written outside of the rows");
    }
  }
}

void check_shapes(const char* who, const Kernels& kernels) {
  std::mt19937 random(1);
  struct Channels {
    int32_t in, out;
  };
  kernels.enter_thread();
  for (const Channels c :
       {Channels{16, 16}, {32, 32}, {64, 64}, {16, 32}, {32, 64}, {48, 48}, {16, 48}, {32, 16}}) {
    for (const int32_t kernel : {1, 3}) {
      for (const int32_t stride : {1, 2}) {
        for (const int32_t width : {1, 2, 3, 4, 5, 8, 16, 32}) {
          for (const int32_t height : {1, 2, 3, 8}) {
            // Wide images of many channels say nothing that narrow ones do not, and take long.
            if (c.in * c.out > 1024 && width * height > 64) continue;
            check_shape({c.in, c.out, kernel, stride, height, width}, who, kernels, random);
          }
        }
      }
    }
  }
  // Shapes without a plan: odd channels, a large kernel.
  check_shape({3, 16, 3, 1, 4, 5}, who, kernels, random);
  check_shape({16, 20, 3, 1, 4, 5}, who, kernels, random);
  check_shape({17, 17, 1, 1, 4, 5}, who, kernels, random);
  kernels.leave_thread();
}

// What has no plan is packed as for AVX-512, and only that.
void check_packing(const Kernels& kernels) {
  const Kernels& vectors = kernels_of(Isa::kAvx512Bf16, Precision::kBf16);
  const auto is_same = [&](int32_t in, int32_t out, int32_t kernel) {
    const int64_t bytes = kernels.packed_bytes(in, out, kernel);
    if (bytes != vectors.packed_bytes(in, out, kernel)) return false;
    std::vector<float> weight(static_cast<size_t>(in * out * kernel * kernel));
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>(i % 251);
    Guarded a(bytes), b(bytes);
    kernels.pack_weight(weight.data(), in, out, kernel, a.data<void>());
    vectors.pack_weight(weight.data(), in, out, kernel, b.data<void>());
    CHECK(a.is_intact() && b.is_intact());
    return std::memcmp(a.data<char>(), b.data<char>(), static_cast<size_t>(bytes)) == 0;
  };
  CHECK(is_same(3, 16, 3));
  CHECK(is_same(48, 48, 3));
  CHECK(is_same(48, 48, 1));
  CHECK(is_same(16, 8, 3));
  CHECK(is_same(32, 20, 1));
  CHECK(is_same(16, 16, 5));
  CHECK(!is_same(16, 16, 1));
  CHECK(!is_same(16, 16, 3));
  CHECK(!is_same(32, 16, 1));
  CHECK(!is_same(64, 64, 3));
}

// Products and loads of one row that has a row above and one below: the plan itself.
void check_counts() {
  struct Case {
    Shape shape;
    int64_t loads, dots;
  };
  std::mt19937 random(2);
  kernels_emulated.enter_thread();
  // With blocks of 4 pixels, for each image row of the window: 2 or 3 weights (3 and 3 at the left
  // border of pairs) and each tile of inputs once, the ones outside left out.
  for (const Case& c :
       {Case{{16, 16, 3, 1, 1, 32}, 8 * 7 + 1 - 2, 64 - 2},
        Case{{32, 32, 3, 1, 1, 16}, 2 * (4 * 9 - 2), 2 * (48 - 2)},
        Case{{64, 64, 3, 1, 1, 8}, 8 * (2 * 9 - 2), 8 * (24 - 2)},
        Case{{16, 32, 3, 2, 1, 32}, 2 * (4 * 10 + 1 - 1), 2 * (32 - 1)},
        Case{{32, 64, 3, 2, 1, 16}, 4 * (2 * 12 - 1), 4 * (24 - 1)},
        Case{{16, 16, 1, 1, 1, 32}, 8 * 5 + 1, 32}, Case{{32, 32, 1, 1, 1, 16}, 2 * 4 * 5, 32},
        Case{{64, 64, 1, 1, 1, 8}, 8 * 2 * 5, 64}}) {
    const Problem problem = make_problem(c.shape, true, random);
    Result result(c.shape);
    take_tile_counts();
    run(kernels_emulated, problem, false, result);
    const TileCounts counts = take_tile_counts();
    if (counts.loads != c.loads || counts.dots != c.dots) {
      fail(c.shape, "counts",
           std::to_string(counts.loads) + " loads, " + std::to_string(counts.dots) + " products");
    }
  }
  kernels_emulated.leave_thread();
}

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

// The emulated product against the pseudo code in scalars, with denormals among operands and sums.
void check_emulation() {
  std::mt19937 random(3);
  std::uniform_int_distribution<uint32_t> any;
  for (const uint32_t exponent : {127u, 64u, 2u}) {
    // Both operands from 8 binades below `exponent`: products near 1, near the least normal, and
    // far below it.
    alignas(64) uint32_t a[256], b[256];
    alignas(64) float sum[256];
    const auto half = [&] {
      const uint32_t bits = any(random), low = exponent < 8 ? 0 : exponent - 8;
      return (bits & 0x807f) | ((low + bits / 65536 % (exponent - low + 1)) << 7);
    };
    for (int i = 0; i < 256; ++i) {
      a[i] = half() | half() << 16;
      b[i] = half() | half() << 16;
      sum[i] = from_bfloat16(half());
    }
    float want[256];
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        float part[2] = {};
        for (int k = 0; k < 16; ++k) {
          for (int h = 0; h < 2; ++h) {
            const float x = flushed(from_bfloat16(a[m * 16 + k] >> (16 * h) & 0xffff));
            const float y = flushed(from_bfloat16(b[k * 16 + n] >> (16 * h) & 0xffff));
            part[h] = flushed(std::fma(x, y, part[h]));
          }
        }
        want[m * 16 + n] = flushed(flushed(sum[m * 16 + n]) + flushed(part[0] + part[1]));
      }
    }
    emulate_dot(sum, a, b);
    CHECK(std::memcmp(sum, want, sizeof want) == 0);
  }
}

int run_tests() {
  std::string reason;
  if (!is_supported(Isa::kAvx512Bf16, &reason)) {
    std::printf("skipped: %s\n", reason.c_str());
    return 0;
  }
  check_emulation();
  check_packing(kernels_emulated);
  check_counts();
  check_shapes("emulated tiles", kernels_emulated);
  if (is_supported(Isa::kAmx, &reason)) {
    const Kernels& real = kernels_of(Isa::kAmx, Precision::kBf16);
    check_packing(real);
    check_shapes("AMX", real);
  } else {
    std::printf("emulated tiles only: %s\n", reason.c_str());
  }
  return check::result();
}

}  // namespace
}  // namespace nasfast::kernels::cpu

int main() { return nasfast::kernels::cpu::run_tests(); }

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,prefer-vector-width=512")

#define NASFAST_BF16_DOT
namespace nasfast::kernels::cpu {
namespace {
// clang-format off: each needs the ones before
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/storage.inl"
#include "kernels/cpu/convolution.inl"
#include "tiles_emulated.h"
#include "kernels/cpu/convolution_amx.inl"
#include "kernels/cpu/weight_gradient.inl"
#include "kernels/cpu/max_pool_gradient.inl"
#include "kernels/cpu/gradients.inl"
#include "kernels/cpu/ranged.inl"
#include "kernels/cpu/max_halve.inl"
#include "kernels/cpu/elementwise.inl"
// clang-format on
}  // namespace

extern const Kernels kernels_emulated = with_tiles(make_kernels<PairValues, PairOperands>());

TileCounts take_tile_counts() {
  const TileCounts counts = {emulated.loads, emulated.dots};
  emulated.loads = emulated.dots = 0;
  return counts;
}

void emulate_dot(float* sum, const uint32_t* a, const uint32_t* b) {
  configure_tiles();
  load_tile<0>(reinterpret_cast<const uint32_t*>(sum));
  load_tile<1>(a);
  load_tile<2>(b);
  dot_tiles<0, 1, 2>();
  store_tile<0>(sum);
  release_tiles();
}
}  // namespace nasfast::kernels::cpu
