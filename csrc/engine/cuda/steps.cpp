// SPDX-License-Identifier: MIT
#include "engine/cuda/steps.h"

#include <algorithm>
#include <map>
#include <utility>

#include "engine/cuda/pass_layout.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

namespace {

Task task_of(Use use) {
  switch (use) {
    case Use::kAvgPool:
      return Task::kAvgPool;
    case Use::kMaxPool:
      return Task::kMaxPool;
    case Use::kShortcut:
      return Task::kShortcut;
    case Use::kMaxHalve:
      return Task::kMaxHalve;
    case Use::kMeasure:
      return Task::kMeasure;
    case Use::kConv:
    case Use::kClassify:
      break;
  }
  return Task::kConv;
}

class StepsBuilder {
 public:
  StepsBuilder(const Placement& placement, Precision precision, const Addresses& addresses,
               int32_t images)
      : placement_(placement), precision_(precision), addresses_(addresses), images_(images) {}

  Steps run() {
    if (const Network* shared = placement_.shared()) {
      for (const Pass& pass : shared->schedule.passes) add_step({{shared, &pass, -1}});
    }
    for (const auto& places : steps_of_lanes(placement_.lanes())) add_step(places);
    return std::move(out_);
  }

  NormRow norm_row(const Network& network, int32_t norm) const {
    const Norm& of = network.schedule.norms[static_cast<size_t>(norm)];
    const Unit& unit = placement_.unit(of.unit);
    NormRow row{};
    row.mean = addresses_.weight(network, unit.mean);
    row.variance = addresses_.weight(network, unit.variance);
    row.bias = addresses_.weight(network, unit.bias);
    row.gamma = addresses_.weight(network, unit.gamma);
    row.beta = addresses_.weight(network, unit.beta);
    row.affine = at<float>(network.affine[static_cast<size_t>(norm)]);
    if (!network.statistics.empty()) {
      row.statistics = at<double>(network.statistics[static_cast<size_t>(norm)]);
    }
    row.channels = of.channels;
    return row;
  }

 private:
  template <typename T>
  T* at(int64_t offset) const {
    return addresses_.at<T>(offset);
  }

  void add_step(const std::vector<Place>& places) {
    Step step;
    step.norms.first = static_cast<int32_t>(out_.norms.size());
    step.heads.first = static_cast<int32_t>(out_.heads.size());
    moments_ = 0;
    constexpr int32_t kNone = 0;  // a classifier
    columns_.clear();
    for (const auto& [network, pass, lane] : places) {
      columns_.push_back(pass->feeds(Use::kClassify) ? kNone
                                                     : columns_of(network->schedule, *pass));
    }
    for (const int32_t columns : {16, 32, 64}) {
      PassesStep passes;
      passes.first = static_cast<int32_t>(out_.passes.size());
      passes.columns = columns;
      for (size_t i = 0; i < places.size(); ++i) {
        if (columns_[i] == columns) add_pass(places[i], passes, step.norms);
      }
      if (passes.count > 0) step.passes.push_back(passes);
    }
    for (size_t i = 0; i < places.size(); ++i) {
      if (columns_[i] == kNone) add_head(places[i], step.heads);
    }
    out_.moments_bytes = std::max(out_.moments_bytes, moments_);
    out_.steps.push_back(std::move(step));
  }

  int32_t add_terms(const Network& network, const Pass& pass) {
    return cuda::add_terms(placement_, addresses_, network, pass, out_.terms);
  }

  void add_pass(const Place& place, PassesStep& passes, NormsStep& norms) {
    const auto& [network, pass, lane] = place;
    PassRow row{};
    row.first_term = static_cast<int32_t>(out_.terms.size());
    row.num_terms = add_terms(*network, *pass);
    row.first_consumer = static_cast<int32_t>(out_.consumers.size());
    row.num_consumers = static_cast<int32_t>(pass->consumers.size());
    row.channels = pass->channels;
    row.is_linear = pass->reads_images;
    row.padding = placement_.padding();
    row.sides = placement_.sides_of(pass->halvings, images_);
    lay_out(network->schedule, *pass, precision_, row);
    if (pass->kept >= 0) row.kept = at<void>(network->tensors[static_cast<size_t>(pass->kept)]);
    for (const Consumer& consumer : pass->consumers) add_consumer(place, consumer, row, norms);
    ++passes.count;
    passes.most_tiles = std::max(passes.most_tiles, row.num_tiles);
    passes.most_bytes = std::max(passes.most_bytes, row.layout.bytes);
    out_.passes.push_back(row);
  }

  void add_consumer(const Place& place, const Consumer& consumer, const PassRow& pass,
                    NormsStep& norms) {
    const Network& network = *place.network;
    ConsumerRow row{};
    row.task = task_of(consumer.use);
    row.kernel = consumer.kernel;
    row.stride = consumer.stride;
    row.out_channels = pass.channels;
    if (consumer.out >= 0) {
      const auto out = static_cast<size_t>(consumer.out);
      row.out_channels = network.schedule.tensors[out].channels;
      row.out = at<void>(network.tensors[out]);
    }
    if (consumer.view >= 0) {
      row.weight = at<void>(network.packed[static_cast<size_t>(consumer.view)]);
    }
    if (consumer.use != Use::kShortcut && placement_.measures(network, consumer.norm)) {
      NormRow norm = norm_row(network, consumer.norm);
      const bool is_halved = consumer.stride == 2;
      norm.tile = is_halved ? pass.tile.halved() : pass.tile;
      norm.sides = placement_.sides_of(place.pass->halvings + is_halved, images_);
      norm.num_tiles = pass.num_tiles;
      if (addresses_.moments != nullptr) {
        row.moments = reinterpret_cast<float*>(addresses_.moments + moments_);
      }
      norm.moments = row.moments;
      const int64_t bytes = int64_t{pass.num_tiles} * 2 * depth_of(row.out_channels) * 4;
      moments_ += Placement::aligned(bytes);
      ++norms.count;
      norms.most_channels = std::max(norms.most_channels, norm.channels);
      out_.norms.push_back(norm);
    }
    out_.consumers.push_back(row);
  }

  void add_head(const Place& place, HeadsStep& heads) {
    const auto& [network, pass, lane] = place;
    const Consumer& consumer = pass->consumers[0];
    const Unit& unit = placement_.unit(consumer.unit);
    HeadRow row{};
    row.first_term = static_cast<int32_t>(out_.terms.size());
    row.num_terms = add_terms(*network, *pass);
    if (consumer.norm >= 0) {
      row.scale = at<float>(network->affine[static_cast<size_t>(consumer.norm)]);
      row.shift = row.scale != nullptr ? row.scale + depth_of(pass->channels) : nullptr;
    }
    row.weight = addresses_.weight(*network, unit.weight);
    row.bias = addresses_.weight(*network, unit.bias);
    row.channels = pass->channels;
    row.is_linear = consumer.is_linear;
    row.result = lane;
    ++heads.count;
    heads.most_channels = std::max(heads.most_channels, row.channels);
    heads.most_terms = std::max(heads.most_terms, row.num_terms);
    heads.sides = placement_.sides_of(pass->halvings, images_);
    out_.heads.push_back(row);
  }

  const Placement& placement_;
  const Precision precision_;
  const Addresses addresses_;
  const int32_t images_;
  std::vector<int32_t> columns_;  // of the passes of the step at hand
  int64_t moments_ = 0;           // bytes of it
  Steps out_;
};

}  // namespace

int32_t Steps::most_shared() const {
  int32_t most = 0;
  for (const PassRow& pass : passes) most = std::max(most, pass.layout.bytes);
  return most;
}

std::vector<std::vector<Place>> steps_of_lanes(const std::vector<Network>& lanes) {
  std::map<std::pair<int32_t, int32_t>, std::vector<Place>> in_order;
  for (size_t lane = 0; lane < lanes.size(); ++lane) {
    int32_t position = -1, number = 0;
    for (const Pass& pass : lanes[lane].schedule.passes) {
      number = pass.position == position ? number + 1 : 0;
      position = pass.position;
      in_order[{position, number}].push_back({&lanes[lane], &pass, static_cast<int32_t>(lane)});
    }
  }
  std::vector<std::vector<Place>> steps;
  for (auto& [key, places] : in_order) steps.push_back(std::move(places));
  return steps;
}

int32_t add_terms(const Placement& placement, const Addresses& addresses, const Network& network,
                  const Pass& pass, std::vector<TermRow>& terms) {
  if (pass.reads_images) {
    TermRow row{};
    row.data = addresses.at<void>(placement.images());
    row.pitch = pitch_of(pass.channels);
    row.count = pass.channels;
    terms.push_back(row);
    return 1;
  }
  for (const PassTerm& term : pass.terms) {
    const StoredTensor& tensor = network.schedule.tensors[static_cast<size_t>(term.tensor)];
    TermRow row{};
    row.data = addresses.at<void>(network.tensors[static_cast<size_t>(term.tensor)]);
    row.scale = addresses.at<float>(placement.affine_of(network, tensor));
    row.shift = row.scale != nullptr ? row.scale + depth_of(tensor.channels) : nullptr;
    if (term.weight >= 0 && addresses.mixing != nullptr)
      row.weight = addresses.mixing + term.weight;
    if (tensor.norm >= 0 && !network.statistics.empty()) {
      row.mean = addresses.at<double>(network.statistics[static_cast<size_t>(tensor.norm)]);
    }
    row.pitch = pitch_of(tensor.channels);
    row.to = term.to;
    row.count = term.count;
    row.is_rectified = tensor.is_rectified;
    terms.push_back(row);
  }
  return static_cast<int32_t>(pass.terms.size());
}

Steps steps_of(const Placement& placement, Precision precision, const Addresses& addresses,
               int32_t images) {
  return StepsBuilder(placement, precision, addresses, images).run();
}

std::vector<NormRow> running_norms(const Placement& placement, const Addresses& addresses) {
  const StepsBuilder builder(placement, Precision::kFp32, addresses, 0);
  std::vector<NormRow> rows;
  const auto include = [&](const Network& network) {
    for (size_t n = 0; n < network.schedule.norms.size(); ++n) {
      const auto norm = static_cast<int32_t>(n);
      if (!placement.measures(network, norm)) rows.push_back(builder.norm_row(network, norm));
    }
  };
  if (placement.shared() != nullptr) include(*placement.shared());
  for (const Network& lane : placement.lanes()) include(lane);
  return rows;
}

}  // namespace nasfast::cuda
