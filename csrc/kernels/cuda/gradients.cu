// SPDX-License-Identifier: MIT
// The way back through passes: the gradient of a value, from those of everything made of it, a
// block of threads for each tile.
#include "kernels/cuda/convolve.cuh"
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/gradient_launches.h"
#include "kernels/cuda/launch_tiles.cuh"
#include "kernels/cuda/results.cuh"
#include "kernels/cuda/sums.cuh"
#include "kernels/cuda/windows_back.cuh"

namespace nasfast::kernels::cuda {

namespace {

NASFAST_HOST_DEVICE constexpr bool is_convolution(Share share) {
  return share == Share::kConv || share == Share::kHalvedConv || share == Share::kShortcut;
}

// The pass's sum once more, as the way forward made it.
template <Precision P>
__device__ __forceinline__ void load_raw(const GradientLaunch& launch, const GradientRow& row,
                                         const Pixel& origin, std::byte* shared) {
  using Type = typename Numbers<P>::Type;
  const TermRow* terms = launch.terms + row.first_term;
  const int32_t depth = depth_of(row.channels), vectors = depth / kVector;
  const auto* scales = reinterpret_cast<const float*>(shared + row.layout.terms);
  const int32_t count = row.tile.padded_rows(row.raw_halo) * vectors;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
    const int32_t at = i / vectors, channel = i % vectors * kVector;
    const Pixel p = origin + row.tile.padded_pixel(at, row.raw_halo);
    float sum[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (has(row.sides, p)) {
      sum_terms<P>(terms, row.num_terms, scales, depth, index_of(row.sides, p), channel, sum);
    }
    std::byte* to = shared + row.layout.raw + at * shared_pitch(P, depth);
    Numbers<P>::store8(reinterpret_cast<Type*>(to) + channel, sum);
  }
}

// The gradient of a convolution's result around the tile, as an operand: at the pass's own pixels.
// A stride of 2 leaves zeros between them; a mean of 2x2 pixels gives each its part.
template <Precision P>
__device__ __forceinline__ void load_result(const GradientLaunch& launch, const GradientRow& row,
                                            const ShareRow& share, const Pixel& origin,
                                            std::byte* shared) {
  const ResultRow& result = launch.results[share.result];
  const int32_t depth = depth_of(result.channels), vectors = depth / kVector;
  const auto* coefficients = reinterpret_cast<const float*>(shared + row.layout.coefficients);
  const Sides& sides = row.sides;
  const Sides half = halved(sides);
  const int32_t count = row.tile.padded_rows(row.halo) * vectors;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
    const int32_t at = i / vectors, channel = i % vectors * kVector;
    const Pixel p = origin + row.tile.padded_pixel(at, row.halo);
    float gradient[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    const bool is_even = p.y % 2 == 0 && p.x % 2 == 0;
    if (has(sides, p) && (share.share != Share::kHalvedConv || is_even)) {
      const int64_t pixel = share.share == Share::kConv
                                ? index_of(sides, p)
                                : index_of(half, {p.image, p.y / 2, p.x / 2});
      result_gradient<P>(result, launch.readers, coefficients, pixel, channel, gradient);
    }
    if (share.share == Share::kShortcut) {
      const int32_t down = (p.y | 1) < sides.height ? 2 : 1,
                    across = (p.x | 1) < sides.width ? 2 : 1;
#pragma unroll
      for (int32_t k = 0; k < kVector; ++k) gradient[k] /= static_cast<float>(down * across);
    }
    std::byte* to = shared + row.layout.operand + at * shared_pitch(P, depth);
    store_operand8<P>(to + channel * number_bytes(P), gradient);
  }
}

// Adds a product to the tile's gradient: what went through a ReLU only where that was positive.
template <Precision P, int kColumns>
__device__ __forceinline__ void add_product(const Product<kColumns>& product,
                                            const GradientRow& row, bool is_masked, int32_t column,
                                            std::byte* shared) {
  using Type = typename Numbers<P>::Type;
  const int32_t depth = depth_of(row.channels), pitch = shared_pitch(P, depth);
  auto* total = reinterpret_cast<float*>(shared + row.layout.total);
  const int32_t pair = static_cast<int32_t>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int32_t r = 0; r < 4; ++r) {
    const int32_t at = row_of(r);
    if (at >= row.tile.rows()) continue;
    const std::byte* raw =
        shared + row.layout.raw + row.tile.padded_row(row.tile.pixel(at), row.raw_halo) * pitch;
#pragma unroll
    for (int32_t n = 0; n < Product<kColumns>::kTiles; ++n) {
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        const int32_t c = column + n * 8 + pair + i;
        if (c >= depth) continue;
        if (is_masked && !(Numbers<P>::load(reinterpret_cast<const Type*>(raw) + c) > 0.0f)) {
          continue;
        }
        total[at * (depth + 4) + c] += product.sums[r / 2][n][r % 2 * 2 + i];
      }
    }
  }
}

// Convolutions that read the value itself, or through a ReLU.
template <Precision P, int kColumns>
__device__ __forceinline__ void convolve_back(const GradientLaunch& launch, const GradientRow& row,
                                              const Pixel& origin, std::byte* shared) {
  auto* coefficients = reinterpret_cast<float*>(shared + row.layout.coefficients);
  Product<kColumns> product;
  for (int32_t i = 0; i < row.num_shares; ++i) {
    const ShareRow& share = launch.shares[row.first_share + i];
    if (!is_convolution(share.share)) continue;
    const ResultRow& result = launch.results[share.result];
    const int32_t depth = depth_of(result.channels);
    // Those before it were read before the barriers of their products.
    load_coefficients(result, launch.readers, false, coefficients);
    __syncthreads();
    load_result<P>(launch, row, share, origin, shared);
    const Operand operand = {shared + row.layout.operand, shared_pitch(P, depth), row.tile,
                             row.halo, depth};
    const Filter filter = {share.weight, share.kernel, 1, row.channels};
    const bool is_masked = share.share != Share::kShortcut && row.is_linear == 0;
    for (int32_t column = 0; column < depth_of(row.channels); column += kColumns) {
      product.clear();
      multiply<P, kColumns>(product, operand, filter, column, row.k_chunk,
                            shared + row.layout.weights);
      add_product<P, kColumns>(product, row, is_masked, column, shared);
    }
  }
}

// What the classifier gives: the same gradient to all pixels where its input was positive, through
// a batch norm.
template <Precision P>
__device__ __forceinline__ void add_head(const HeadShare& head, const Sides& sides, const Pixel& p,
                                         const float* value, int32_t channels, int32_t first,
                                         float (&sum)[kVector]) {
  const int32_t depth = depth_of(channels);
  const double count = static_cast<double>(sides.images) * sides.height * sides.width;
  const float pixels = static_cast<float>(sides.height) * static_cast<float>(sides.width);
#pragma unroll
  for (int32_t i = 0; i < kVector; ++i) {
    const int32_t c = first + i;
    if (c >= channels) continue;
    float gradient = head.gradient[int64_t{p.image} * depth + c] / pixels;
    float z = value[i];
    if (head.affine != nullptr) z = fmaf(z, head.affine[c], head.affine[depth + c]);
    if (head.is_linear == 0 && !(z > 0.0f)) gradient = 0.0f;
    if (head.sums != nullptr) {
      const double mean = head.statistics[c];
      const double dot = head.sums[depth + c] + (static_cast<float>(mean) - mean) * head.sums[c];
      const NormGradient of = norm_gradient(head.sums[c], dot, mean, head.statistics[depth + c],
                                            head.gamma != nullptr ? head.gamma[c] : 1.0f, count);
      gradient = fmaf(of.a, gradient, fmaf(of.b, value[i], of.c));
    }
    sum[i] += gradient;
  }
}

// All other shares, by pixel; the gradient is stored, and as it is stored kept for its sums.
template <Precision P>
__device__ __forceinline__ void finish_pixels(const GradientLaunch& launch, const GradientRow& row,
                                              const Pixel& origin, std::byte* shared) {
  using Type = typename Numbers<P>::Type;
  const int32_t depth = depth_of(row.channels), pitch = pitch_of(row.channels);
  auto* total = reinterpret_cast<float*>(shared + row.layout.total);
  const Operand raw = {shared + row.layout.raw, shared_pitch(P, depth), row.tile, row.raw_halo,
                       depth};
  const int32_t vectors = pitch / kVector;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.tile.rows() * vectors;
       i += kThreads) {
    const int32_t at = i / vectors, channel = i % vectors * kVector;
    const Pixel in_tile = row.tile.pixel(at), p = origin + in_tile;
    if (!has(row.sides, p)) continue;
    float sum[kVector];
    float* own = total + at * (depth + 4) + channel;
    Numbers<Precision::kFp32>::load8(own, sum);
    for (int32_t s = 0; s < row.num_shares; ++s) {
      const ShareRow& share = launch.shares[row.first_share + s];
      const ResultRow& result = launch.results[share.result];
      if (share.share == Share::kAvgPool) {
        average_back<P>(result, launch.readers, row.sides, p, share.kernel, channel, sum);
      } else if (share.share == Share::kMaxPool) {
        max_back<P>(raw, result, launch.readers, row.sides, in_tile, p, share.kernel, channel, sum);
      } else if (share.share == Share::kMaxHalve) {
        max_halve_back<P>(raw, result, launch.readers, row.sides, in_tile, p, row.padding, channel,
                          sum);
      }
    }
    if (row.head.gradient != nullptr) {
      float value[kVector];
      load_pixel<P>(raw, in_tile, channel, value);
      add_head<P>(row.head, row.sides, p, value, row.channels, channel, sum);
    }
    if (row.num_readers > 0) {
      float more[kVector];
      sum_readers<P>(launch.readers, row.first_reader, row.num_readers, index_of(row.sides, p),
                     channel, more);
#pragma unroll
      for (int32_t k = 0; k < kVector; ++k) sum[k] += more[k];
    }
#pragma unroll
    for (int32_t k = 0; k < kVector; ++k) {
      sum[k] = channel + k < row.channels ? Numbers<P>::rounded(sum[k]) : 0.0f;
    }
    Numbers<P>::store8(static_cast<Type*>(row.gradient) + index_of(row.sides, p) * pitch + channel,
                       sum);
    Numbers<Precision::kFp32>::store8(own, sum);
  }
}

// Sums over the tile of the gradient, and of it times each term's stored number less its mean. A
// thread adds up some rows of a channel; then the threads of a channel are added.
template <Precision P>
__device__ __forceinline__ void sum_tile(const GradientLaunch& launch, const GradientRow& row,
                                         const Pixel& origin, int32_t index, std::byte* shared) {
  using Type = typename Numbers<P>::Type;
  const int32_t depth = depth_of(row.channels), slices = depth >= kThreads ? 1 : kThreads / depth;
  const auto* total = reinterpret_cast<const float*>(shared + row.layout.total);
  auto* sums = reinterpret_cast<float*>(shared + row.layout.sums);
  const int32_t stride = depth > kThreads ? depth : kThreads;
  for (int32_t t = 0; t < row.num_terms; ++t) {
    const TermRow& term = launch.terms[row.first_term + t];
    float* to = row.sums + (int64_t{index} * row.num_terms + t) * 2 * depth;
    if (term.mean == nullptr && term.weight == nullptr) {
      // Nobody asks, but the tiles of all terms are added up.
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < 2 * depth; i += kThreads) to[i] = 0;
      continue;
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < slices * depth; i += kThreads) {
      const int32_t slice = i / depth, c = i % depth;
      float sum = 0.0f, dot = 0.0f;
      const float mean =
          c < term.count && term.mean != nullptr ? static_cast<float>(term.mean[c]) : 0.0f;
      for (int32_t at = slice; c < term.count && at < row.tile.rows(); at += slices) {
        const Pixel p = origin + row.tile.pixel(at);
        if (!has(row.sides, p)) continue;
        const Type* from = static_cast<const Type*>(term.data);
        const float number = Numbers<P>::load(from + index_of(row.sides, p) * term.pitch + c);
        float gradient = total[at * (depth + 4) + term.to + c];
        if (term.is_rectified != 0) {
          const float scale = term.scale != nullptr ? term.scale[c] : 1.0f;
          const float shift = term.shift != nullptr ? term.shift[c] : 0.0f;
          if (!(fmaf(number, scale, shift) > 0.0f)) gradient = 0.0f;
        }
        sum += gradient;
        dot = fmaf(gradient, number - mean, dot);
      }
      sums[i] = sum;
      sums[stride + i] = dot;
    }
    __syncthreads();
    for (int32_t c = static_cast<int32_t>(threadIdx.x); c < depth; c += kThreads) {
      float sum = 0.0f, dot = 0.0f;
      for (int32_t slice = 0; slice < slices; ++slice) {
        sum += sums[slice * depth + c];
        dot += sums[stride + slice * depth + c];
      }
      to[c] = sum;
      to[depth + c] = dot;
    }
    __syncthreads();
  }
}

// Gradients of the classifier's batch norm.
__device__ __forceinline__ void write_head_norm(const HeadShare& head, int32_t channels) {
  if (head.gradient == nullptr || head.sums == nullptr) return;
  const int32_t depth = depth_of(channels);
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < channels; c += kThreads) {
    const double mean = head.statistics[c];
    const double dot = head.sums[depth + c] + (static_cast<float>(mean) - mean) * head.sums[c];
    if (head.gamma_gradient != nullptr) {
      head.gamma_gradient[c] = static_cast<float>(head.statistics[depth + c] * dot);
    }
    if (head.beta_gradient != nullptr) head.beta_gradient[c] = static_cast<float>(head.sums[c]);
  }
}

template <Precision P, int kColumns>
__global__ void __launch_bounds__(kThreads, 1) gradient_kernel(const GradientLaunch launch) {
  const GradientRow& row = launch.rows[blockIdx.y];
  const auto index = static_cast<int32_t>(blockIdx.x);
  if (index >= row.num_tiles) return;
  std::byte* shared = shared_memory();
  const Pixel origin = origin_of(row.tile, row.sides, index);
  const int32_t depth = depth_of(row.channels);
  auto* total = reinterpret_cast<float*>(shared + row.layout.total);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.tile.rows() * (depth + 4);
       i += kThreads) {
    total[i] = 0.0f;
  }
  load_scales(launch.terms + row.first_term, row.num_terms, depth,
              reinterpret_cast<float*>(shared + row.layout.terms));
  __syncthreads();
  if (row.layout.raw >= 0) load_raw<P>(launch, row, origin, shared);
  convolve_back<P, kColumns>(launch, row, origin, shared);
  if (index == 0) write_head_norm(row.head, row.channels);
  __syncthreads();
  finish_pixels<P>(launch, row, origin, shared);
  __syncthreads();
  sum_tile<P>(launch, row, origin, index, shared);
}

}  // namespace

cudaError_t launch_gradients(Precision precision, int32_t columns, const GradientLaunch& launch_of,
                             cudaStream_t stream) {
  return for_columns(precision, columns, [&]<Precision P, int kColumns>() {
    return launch_tiles(gradient_kernel<P, kColumns>, launch_of, launch_of.num_rows, stream);
  });
}

}  // namespace nasfast::kernels::cuda
