// SPDX-License-Identifier: MIT
// The way back through pools, a pixel of the pool's input at a time: which windows it lies in, and
// what each of them gives it.
#pragma once

#include "kernels/cuda/results.cuh"
#include "kernels/cuda/windows.cuh"

namespace nasfast::kernels::cuda {

static __device__ __forceinline__ int32_t rows_inside(int32_t centre, int32_t pad, int32_t side) {
  return least(side, centre + pad + 1) - (centre > pad ? centre - pad : 0);
}

// Calls visit(centre, gradient) for the windows of stride 1 that a pixel lies in.
template <Precision P, typename Visit>
static __device__ __forceinline__ void for_windows(const ResultRow& result,
                                                   const ReaderRow* readers, const Sides& sides,
                                                   const Pixel& p, int32_t pad, int32_t channel,
                                                   const Visit& visit) {
  for (int32_t dy = -pad; dy <= pad; ++dy) {
    for (int32_t dx = -pad; dx <= pad; ++dx) {
      const Pixel centre = {p.image, p.y + dy, p.x + dx};
      if (!has(sides, centre)) continue;
      float gradient[kVector];
      sum_readers<P>(readers, result.first_reader, result.num_readers, index_of(sides, centre),
                     channel, gradient);
      visit(centre, gradient);
    }
  }
}

// Every window gives all its pixels an equal part.
template <Precision P>
static __device__ __forceinline__ void average_back(const ResultRow& result,
                                                    const ReaderRow* readers, const Sides& sides,
                                                    const Pixel& p, int32_t kernel, int32_t channel,
                                                    float (&sum)[kVector]) {
  const int32_t pad = kernel / 2;
  for_windows<P>(result, readers, sides, p, pad, channel,
                 [&](const Pixel& centre, const float (&gradient)[kVector]) {
                   const auto count = static_cast<float>(rows_inside(centre.y, pad, sides.height) *
                                                         rows_inside(centre.x, pad, sides.width));
#pragma unroll
                   for (int32_t k = 0; k < kVector; ++k) sum[k] += gradient[k] / count;
                 });
}

// Adds `gradient` where pixel `p` has the maximum of the window [first, last], the first one of
// equal ones, row by row. NaN is the maximum of a window that has one.
template <Precision P>
static __device__ __forceinline__ void add_where_most(const Operand& raw, const Sides& sides,
                                                      const Pixel& in_tile, const Pixel& p,
                                                      const Pixel& first, const Pixel& last,
                                                      int32_t channel,
                                                      const float (&gradient)[kVector],
                                                      float (&sum)[kVector]) {
  float own[kVector];
  load_pixel<P>(raw, in_tile, channel, own);
  bool is_most[kVector];
#pragma unroll
  for (int32_t k = 0; k < kVector; ++k) is_most[k] = true;
  for (int32_t y = first.y; y <= last.y; ++y) {
    for (int32_t x = first.x; x <= last.x; ++x) {
      if (!has(sides, {p.image, y, x}) || (y == p.y && x == p.x)) continue;
      const bool is_before = y < p.y || (y == p.y && x < p.x);
      float other[kVector];
      load_pixel<P>(raw, {in_tile.image, in_tile.y + y - p.y, in_tile.x + x - p.x}, channel, other);
#pragma unroll
      for (int32_t k = 0; k < kVector; ++k) {
        const bool is_number = other[k] == other[k], own_is_number = own[k] == own[k];
        const bool wins = is_before ? other[k] >= own[k] || !is_number
                                    : other[k] > own[k] || (!is_number && own_is_number);
        if (wins && !(is_before && is_number && !own_is_number)) is_most[k] = false;
      }
    }
  }
#pragma unroll
  for (int32_t k = 0; k < kVector; ++k) sum[k] += is_most[k] ? gradient[k] : 0.0f;
}

template <Precision P>
static __device__ __forceinline__ void max_back(const Operand& raw, const ResultRow& result,
                                                const ReaderRow* readers, const Sides& sides,
                                                const Pixel& in_tile, const Pixel& p,
                                                int32_t kernel, int32_t channel,
                                                float (&sum)[kVector]) {
  const int32_t pad = kernel / 2;
  for_windows<P>(result, readers, sides, p, pad, channel,
                 [&](const Pixel& centre, const float (&gradient)[kVector]) {
                   add_where_most<P>(
                       raw, sides, in_tile, p, {p.image, centre.y - pad, centre.x - pad},
                       {p.image, centre.y + pad, centre.x + pad}, channel, gradient, sum);
                 });
}

// Every pixel lies in one window.
template <Precision P>
static __device__ __forceinline__ void max_halve_back(const Operand& raw, const ResultRow& result,
                                                      const ReaderRow* readers, const Sides& sides,
                                                      const Pixel& in_tile, const Pixel& p,
                                                      int32_t pad, int32_t channel,
                                                      float (&sum)[kVector]) {
  const Sides half = {sides.images, (sides.height + 1 + pad) / 2, (sides.width + 1 + pad) / 2};
  const Pixel window = {p.image, (p.y + pad) / 2, (p.x + pad) / 2};
  float gradient[kVector];
  sum_readers<P>(readers, result.first_reader, result.num_readers, index_of(half, window), channel,
                 gradient);
  const Pixel first = {p.image, 2 * window.y - pad, 2 * window.x - pad};
  add_where_most<P>(raw, sides, in_tile, p, first, {p.image, first.y + 1, first.x + 1}, channel,
                    gradient, sum);
}

}  // namespace nasfast::kernels::cuda
