// SPDX-License-Identifier: MIT
#include "engine/cuda/training_steps.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine/cuda/gradient_layout.h"
#include "engine/cuda/pass_layout.h"
#include "engine/cuda/shared_memory.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

namespace {

constexpr int32_t kMostParts = 16;  // of a weight's gradient

Share share_of(const Consumer& consumer) {
  switch (consumer.use) {
    case Use::kAvgPool:
      return Share::kAvgPool;
    case Use::kMaxPool:
      return Share::kMaxPool;
    case Use::kMaxHalve:
      return Share::kMaxHalve;
    case Use::kShortcut:
      return Share::kShortcut;
    case Use::kConv:
    case Use::kMeasure:
    case Use::kClassify:
      break;
  }
  return consumer.stride == 2 ? Share::kHalvedConv : Share::kConv;
}

// A pass on the way back.
struct Backward {
  const Network& network;
  const BackwardPlaces& places;
  const Pass& pass;
  size_t index;  // of the pass
};

class BackwardBuilder {
 public:
  BackwardBuilder(const Placement& placement, const std::vector<BackwardPlaces>& backward,
                  const ViewInputs& inputs, Precision precision, const BackwardAddresses& addresses,
                  int32_t images)
      : placement_(placement),
        backward_(backward),
        inputs_(inputs),
        precision_(precision),
        addresses_(addresses),
        images_(images) {}

  BackwardSteps run() {
    const auto steps = steps_of_lanes(placement_.lanes());
    for (auto places = steps.rbegin(); places != steps.rend(); ++places) add_step(*places);
    return std::move(out_);
  }

 private:
  template <typename T>
  T* at(int64_t offset) const {
    return addresses_.forward.at<T>(offset);
  }
  // Where the gradient of a parameter of a lane goes.
  float* gradient_of(const Network& network, int32_t offset) const {
    return offset >= 0 && addresses_.gradients != nullptr
               ? addresses_.gradients + network.gradients + offset
               : nullptr;
  }
  const Unit& unit(int32_t index) const { return placement_.unit(index); }

  // Room for sums of tiles of the step at hand.
  float* take_partial(int64_t floats) {
    const int64_t begin = partial_;
    partial_ += Placement::aligned(floats * 4);
    out_.partial_bytes = std::max(out_.partial_bytes, partial_);
    return addresses_.partial != nullptr ? reinterpret_cast<float*>(addresses_.partial + begin)
                                         : nullptr;
  }

  void add_step(const std::vector<Place>& places) {
    BackwardStep step;
    partial_ = 0;
    std::vector<Backward> passes;
    for (const Place& place : places) {
      const auto& all = place.network->schedule.passes;
      passes.push_back({*place.network, backward_[static_cast<size_t>(place.lane)], *place.pass,
                        static_cast<size_t>(place.pass - all.data())});
    }
    step.heads.first = static_cast<int32_t>(out_.heads.size());
    step.head_sums.first = static_cast<int32_t>(out_.sums.size());
    for (const Backward& pass : passes) {
      if (pass.pass.feeds(Use::kClassify)) add_head(pass, step);
    }
    step.sums.first = static_cast<int32_t>(out_.sums.size());
    for (const int32_t columns : {16, 32, 64}) {
      GradientsStep gradients;
      gradients.first = static_cast<int32_t>(out_.gradients.size());
      gradients.columns = columns;
      for (const Backward& pass : passes) {
        if (pass.places.gradients[pass.index] < 0) continue;
        if (columns_for(pass.pass.channels) != columns) continue;
        add_gradient(pass, gradients, step.sums);
      }
      if (gradients.count > 0) step.gradients.push_back(gradients);
    }
    step.mixing.first = static_cast<int32_t>(out_.mixing.size());
    for (const Backward& pass : passes) add_mixing(pass, step.mixing);
    step.weights.first = static_cast<int32_t>(out_.weights.size());
    for (const Backward& pass : passes) add_weights(pass, step.weights);
    out_.steps.push_back(std::move(step));
  }

  // Returns where they begin.
  int32_t add_readers(const Backward& of, int32_t tensor, bool has_norm) {
    const auto first = static_cast<int32_t>(out_.readers.size());
    for (const Reader& reader : of.places.reverse.readers_of(tensor)) {
      const auto index = static_cast<size_t>(reader.pass);
      const Pass& pass = of.network.schedule.passes[index];
      const PassTerm& term = pass.terms[static_cast<size_t>(reader.term)];
      ReaderRow row{};
      row.gradient = at<void>(of.places.gradients[index]);
      row.depth = depth_of(pass.channels);
      row.pitch = pitch_of(pass.channels);
      if (has_norm) {
        row.sums = at<double>(of.places.totals[index] + int64_t{reader.term} * 2 * row.depth * 8);
      }
      if (reader.weight >= 0 && addresses_.forward.mixing != nullptr) {
        row.weight = addresses_.forward.mixing + reader.weight;
      }
      row.from = term.to;
      row.count = term.count;
      out_.readers.push_back(row);
    }
    return first;
  }

  int32_t add_result(const Backward& of, const Consumer& consumer) {
    const auto index = static_cast<size_t>(consumer.out);
    const StoredTensor& tensor = of.network.schedule.tensors[index];
    ResultRow row{};
    row.first_reader = add_readers(of, consumer.out, tensor.norm >= 0);
    row.num_readers = static_cast<int32_t>(out_.readers.size()) - row.first_reader;
    row.channels = tensor.channels;
    row.is_rectified = tensor.is_rectified;
    const Sides sides = placement_.sides_of(tensor.halvings, images_);
    row.count = static_cast<double>(sides.images) * sides.height * sides.width;
    if (tensor.norm >= 0) {
      const auto norm = static_cast<size_t>(tensor.norm);
      const Unit& own = unit(of.network.schedule.norms[norm].unit);
      row.value = at<void>(of.network.tensors[index]);
      row.affine = at<float>(of.network.affine[norm]);
      row.statistics = at<double>(of.network.statistics[norm]);
      row.gamma = addresses_.forward.weight(of.network, own.gamma);
      row.gamma_gradient = gradient_of(of.network, own.gamma);
      row.beta_gradient = gradient_of(of.network, own.beta);
    }
    out_.results.push_back(row);
    return static_cast<int32_t>(out_.results.size()) - 1;
  }

  void add_head(const Backward& of, BackwardStep& step) {
    const Consumer& consumer = of.pass.consumers[0];
    const int32_t depth = depth_of(of.pass.channels);
    HeadGradientRow row{};
    row.head = step.heads.count;
    row.features = at<float>(of.places.features);
    row.logits = at<float>(of.places.logits);
    row.gradient = at<float>(of.places.head_gradient);
    row.weight_gradient = gradient_of(of.network, unit(consumer.unit).weight);
    row.bias_gradient = gradient_of(of.network, unit(consumer.unit).bias);
    if (consumer.norm >= 0) {
      row.mean = at<double>(of.network.statistics[static_cast<size_t>(consumer.norm)]);
      row.sums = take_partial(int64_t{images_} * 2 * depth);
      out_.sums.push_back({row.sums, at<double>(of.places.head_totals), images_, 2 * depth});
      ++step.head_sums.count;
      step.head_sums.most_numbers = std::max(step.head_sums.most_numbers, 2 * depth);
    }
    ++step.heads.count;
    out_.heads.push_back(row);
  }

  void set_head(const Backward& of, const Consumer& consumer, HeadShare& head) {
    head.gradient = at<float>(of.places.head_gradient);
    head.is_linear = consumer.is_linear;
    if (consumer.norm < 0) return;
    const auto norm = static_cast<size_t>(consumer.norm);
    const Unit& own = unit(of.network.schedule.norms[norm].unit);
    head.sums = at<double>(of.places.head_totals);
    head.affine = at<float>(of.network.affine[norm]);
    head.statistics = at<double>(of.network.statistics[norm]);
    head.gamma = addresses_.forward.weight(of.network, own.gamma);
    head.gamma_gradient = gradient_of(of.network, own.gamma);
    head.beta_gradient = gradient_of(of.network, own.beta);
  }

  // Whether some term of the pass has a batch norm or a mixing weight, whose gradients take sums.
  static bool has_sums(const Backward& of) {
    return std::ranges::any_of(of.pass.terms, [&](const PassTerm& term) {
      const auto tensor = static_cast<size_t>(term.tensor);
      return term.weight >= 0 || of.network.schedule.tensors[tensor].norm >= 0;
    });
  }

  void add_gradient(const Backward& of, GradientsStep& step, SumsStep& sums) {
    const Pass& pass = of.pass;
    GradientRow row{};
    row.first_term = static_cast<int32_t>(out_.terms.size());
    row.num_terms = add_terms(placement_, addresses_.forward, of.network, pass, out_.terms);
    row.first_share = static_cast<int32_t>(out_.shares.size());
    for (const Consumer& consumer : pass.consumers) {
      if (!of.places.reverse.is_live(consumer)) continue;
      if (consumer.use == Use::kClassify) {
        set_head(of, consumer, row.head);
        continue;
      }
      ShareRow share{};
      share.share = share_of(consumer);
      share.kernel = consumer.kernel;
      share.result = add_result(of, consumer);
      if (consumer.view >= 0) {
        share.weight = at<void>(of.places.packed[static_cast<size_t>(consumer.view)]);
      }
      out_.shares.push_back(share);
    }
    row.num_shares = static_cast<int32_t>(out_.shares.size()) - row.first_share;
    if (pass.kept >= 0) {
      row.first_reader = add_readers(of, pass.kept, false);
      row.num_readers = static_cast<int32_t>(out_.readers.size()) - row.first_reader;
    }
    row.channels = pass.channels;
    row.padding = placement_.padding();
    row.sides = placement_.sides_of(pass.halvings, images_);
    row.gradient = at<void>(of.places.gradients[of.index]);
    lay_out_gradient(of.network.schedule, of.places.reverse, pass, precision_, row);
    const int32_t numbers = row.num_terms * 2 * depth_of(row.channels);
    row.sums = take_partial(int64_t{row.num_tiles} * numbers);
    if (has_sums(of)) {
      out_.sums.push_back(
          {row.sums, at<double>(of.places.totals[of.index]), row.num_tiles, numbers});
      ++sums.count;
      sums.most_numbers = std::max(sums.most_numbers, numbers);
    }
    ++step.count;
    step.most_tiles = std::max(step.most_tiles, row.num_tiles);
    step.most_bytes = std::max(step.most_bytes, row.layout.bytes);
    out_.gradients.push_back(row);
  }

  void add_mixing(const Backward& of, SumsStep& step) {
    if (of.places.gradients[of.index] < 0 || addresses_.mixing_gradient == nullptr) return;
    const int32_t depth = depth_of(of.pass.channels);
    for (size_t t = 0; t < of.pass.terms.size(); ++t) {
      const PassTerm& term = of.pass.terms[t];
      if (term.weight < 0) continue;
      const StoredTensor& tensor = of.network.schedule.tensors[static_cast<size_t>(term.tensor)];
      MixingRow row{};
      row.sums = at<double>(of.places.totals[of.index] + static_cast<int64_t>(t) * 2 * depth * 8);
      row.gradient = addresses_.mixing_gradient + term.weight;
      row.channels = term.count;
      row.depth = depth;
      if (tensor.norm >= 0) {
        const auto norm = static_cast<size_t>(tensor.norm);
        row.scale = at<float>(of.network.affine[norm]);
        row.shift = row.scale != nullptr ? row.scale + depth_of(tensor.channels) : nullptr;
        row.mean = at<double>(of.network.statistics[norm]);
      }
      ++step.count;
      out_.mixing.push_back(row);
    }
  }

  void add_weights(const Backward& of, WeightGradientsStep& step) {
    const Pass& pass = of.pass;
    const auto first_term = static_cast<int32_t>(out_.terms.size());
    int32_t num_terms = 0;
    for (const Consumer& consumer : pass.consumers) {
      const bool convolves = consumer.use == Use::kConv || consumer.use == Use::kShortcut;
      if (!convolves || !of.places.reverse.is_live(consumer)) continue;
      if (num_terms == 0) {
        num_terms = add_terms(placement_, addresses_.forward, of.network, pass, out_.terms);
      }
      const Unit& own = unit(consumer.unit);
      WeightGradientRow row{};
      row.first_term = first_term;
      row.num_terms = num_terms;
      row.channels = pass.channels;
      row.is_shortcut = consumer.use == Use::kShortcut;
      row.is_linear = pass.reads_images || row.is_shortcut;
      row.kernel = consumer.kernel;
      row.stride = consumer.stride;
      row.result = add_result(of, consumer);
      row.out_channels = own.out_channels;
      row.sides = placement_.sides_of(pass.halvings, images_);
      fit_weights(row);
      const int64_t numbers =
          int64_t{own.kernel} * own.kernel * depth_of(own.out_channels) * depth_of(pass.channels);
      row.partial = take_partial(row.parts * numbers);
      const WeightGradientSize size = weight_gradient_size(precision_, row);
      step.most_blocks = std::max(step.most_blocks, size.blocks);
      step.most_bytes = std::max(step.most_bytes, size.bytes);
      WeightSumRow sum{};
      sum.partial = row.partial;
      sum.gradient = gradient_of(of.network, own.weight);
      const auto view = static_cast<size_t>(consumer.view);
      sum.inputs = inputs_.of(view, addresses_.inputs);
      sum.parts = row.parts;
      sum.in_channels = pass.channels;
      sum.all_channels = own.in_channels;
      sum.out_channels = own.out_channels;
      sum.kernel = own.kernel;
      step.most_numbers = std::max(
          step.most_numbers, int64_t{own.kernel} * own.kernel * own.out_channels * pass.channels);
      ++step.count;
      out_.weights.push_back(row);
      out_.weight_sums.push_back(sum);
    }
  }

  // Chooses the tile: the largest that fits a block with what its windows reach.
  void fit_weights(WeightGradientRow& row) const {
    for (int32_t most_rows = kTileRows; most_rows >= 16; most_rows /= 2) {
      row.tile = tile_for(row.sides.height, row.sides.width, most_rows);
      row.num_tiles = num_tiles(row.tile, row.sides);
      row.parts = std::min(row.num_tiles, kMostParts);
      if (weight_gradient_size(precision_, row).bytes <= kMostBytes) return;
    }
    throw std::invalid_argument("a convolution of kernel " + std::to_string(row.kernel) + " and " +
                                std::to_string(row.channels) +
                                " channels: its gradient is more than fits a device");
  }

  const Placement& placement_;
  const std::vector<BackwardPlaces>& backward_;
  const ViewInputs& inputs_;
  const Precision precision_;
  const BackwardAddresses addresses_;
  const int32_t images_;
  int64_t partial_ = 0;
  BackwardSteps out_;
};

}  // namespace

int32_t BackwardSteps::most_shared() const {
  int32_t most = 0;
  for (const GradientRow& row : gradients) most = std::max(most, row.layout.bytes);
  for (const BackwardStep& step : steps) most = std::max(most, step.weights.most_bytes);
  return most;
}

BackwardSteps backward_steps(const Placement& placement,
                             const std::vector<BackwardPlaces>& backward, const ViewInputs& inputs,
                             Precision precision, const BackwardAddresses& addresses,
                             int32_t images) {
  return BackwardBuilder(placement, backward, inputs, precision, addresses, images).run();
}

}  // namespace nasfast::cuda
