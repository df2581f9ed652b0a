// SPDX-License-Identifier: MIT
// Runs one chunk of a program table on the CPU.
#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <string>

#include "kernels/cpu/isa.h"
#include "program/program_table.h"

namespace nasfast {

// Images as [images, channels, height, width] float32 and the sizes of the minibatches they are cut
// into, in order.
struct Images {
  const float* data = nullptr;
  std::span<const int64_t> sizes;

  int64_t count() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t{0}); }
};

struct RunOptions {
  kernels::cpu::Precision precision = kernels::cpu::Precision::kFp32;
  kernels::cpu::Isa isa = kernels::cpu::Isa::kBaseline;
  int32_t threads = 1;
  int32_t height = 0;
  int32_t width = 0;
  BatchNormMode fixed = kBatch;  // of stem and reductions
  BatchNormMode last = kBatch;   // of the batch norm before the classifier
};

// Where results go; null: not wanted. Rows in the order of the chunk's lanes.
struct RunResults {
  float* logits = nullptr;     // [lanes, images, classes]
  float* loss = nullptr;       // [lanes, images] cross-entropy
  uint8_t* correct = nullptr;  // [lanes, images] 1 where the largest logit, the first of equal
                               // ones, is the label's and the loss is finite
};

// Scores every lane of a chunk on every minibatch.
//
// `arena` is the weight set of the chunk; only the weights that its lanes use are read. `labels`
// [images] may be null without loss and correct. `calibration` holds the images that a part in mode
// recalibrate is measured on; without data, the evaluated images. Results do not depend on the
// number of threads, nor on what else is in the chunk.
//
// Throws std::invalid_argument when an option does not fit the table, and std::bad_alloc. Returns
// the bytes of working memory that were planned.
int64_t run_chunk(const ProgramTable& table, int32_t chunk, const float* arena,
                  const Images& images, const int64_t* labels, const Images& calibration,
                  const RunOptions& options, const RunResults& results);

}  // namespace nasfast
