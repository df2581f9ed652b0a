// SPDX-License-Identifier: MIT
// Guarded rows, inputs and a run over a whole block for amx_test.cpp, which includes this inside
// its own anonymous namespace.

// Memory of a row with guards around it. The bits of NaN, so that a guard read spoils a result and
// a guard written is seen; and forbidden to sanitized code. A tile loaded from one row that begins
// or ends outside by one pixel ends up in here.
class Guarded {
 public:
  explicit Guarded(int64_t bytes) : bytes_(bytes), size_((bytes + 63) / 64 * 64 + 2 * kGuard) {
    memory_ = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(size_)));
    std::memset(memory_, 0xff, static_cast<size_t>(size_));
    forbid(true);
  }
  ~Guarded() {
    forbid(false);
    std::free(memory_);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(memory_ + kGuard);
  }
  bool is_intact() {
    forbid(false);
    bool intact = true;
    for (int64_t i = 0; i < kGuard; ++i) {
      intact = intact && memory_[i] == '\xff' && memory_[kGuard + bytes_ + i] == '\xff';
    }
    forbid(true);
    return intact;
  }

 private:
  static constexpr int64_t kGuard = 8192;  // two pixels of 64 channels and more

  void forbid([[maybe_unused]] bool forbidden) const {
#if defined(__SANITIZE_ADDRESS__)
    for (char* guard : {memory_, memory_ + kGuard + bytes_}) {
      if (forbidden) {
        ASAN_POISON_MEMORY_REGION(guard, kGuard);
      } else {
        ASAN_UNPOISON_MEMORY_REGION(guard, kGuard);
      }
    }
#endif
  }

  int64_t bytes_, size_;
  char* memory_;
};

// Rows of one block, each guarded by itself. Zeros at first, as half a line may stay.
struct Rows {
  Rows(int32_t height, int32_t width, int32_t channels)
      : pitch(lines(Storage::kPair, channels) * kBlockImages) {
    const int64_t bytes = width * pitch * 4;
    for (int32_t y = 0; y < height; ++y) {
      rows.push_back(std::make_unique<Guarded>(bytes));
      std::memset(rows.back()->data<char>(), 0, static_cast<size_t>(bytes));
    }
  }
  uint16_t& at(int32_t y, int32_t x, int32_t channel, int32_t image) const {
    return rows[static_cast<size_t>(y)]
        ->data<uint16_t>()[2 * (x * pitch + channel / 2 * kBlockImages + image) + channel % 2];
  }
  int64_t pitch;  // entries of a pixel
  std::vector<std::unique_ptr<Guarded>> rows;
};

// What a kernel makes of a whole block.
struct Result {
  explicit Result(const Shape& shape)
      : out(shape.out_height(), shape.out_width(), shape.out),
        floats(3 * padded_channels(shape.out) * kBlockImages * 4),
        doubles(2 * padded_channels(shape.out) * kBlockImages * 8) {
    const int64_t count = padded_channels(shape.out) * kBlockImages;
    std::memset(floats.data<char>(), 0, static_cast<size_t>(count * 12));
    std::memset(doubles.data<char>(), 0, static_cast<size_t>(count * 16));
    auto* f = floats.data<float>();
    auto* d = doubles.data<double>();
    moments = {f, f + count, f + 2 * count, d, d + count};
  }
  Rows out;
  Guarded floats, doubles;
  Moments moments;
};

struct Problem {
  Shape shape;
  Rows in;
  std::vector<float> weight;  // [out, in, kernel, kernel], values of bfloat16
};

// Small integers: every sum is exact in float32, in whatever order, so results are equal bit for
// bit. Or fractions, which exercise the rounding.
Problem make_problem(const Shape& shape, bool integers, std::mt19937& random) {
  std::uniform_int_distribution<int> digit(-4, 4);
  std::uniform_real_distribution<float> fraction(-1.0f, 1.0f);
  const auto next = [&] {
    return integers ? static_cast<float>(digit(random))
                    : from_bfloat16(to_bfloat16(fraction(random)));
  };
  Problem problem{shape, {shape.height, shape.width, shape.in}, {}};
  for (int32_t y = 0; y < shape.height; ++y) {
    for (int32_t x = 0; x < shape.width; ++x) {
      for (int32_t c = 0; c < shape.in; ++c) {
        for (int32_t i = 0; i < kBlockImages; ++i) {
          problem.in.at(y, x, c, i) = static_cast<uint16_t>(to_bfloat16(next()));
        }
      }
    }
  }
  problem.weight.resize(static_cast<size_t>(shape.out * shape.in * shape.kernel * shape.kernel));
  for (float& w : problem.weight) w = next();
  return problem;
}

void run(const Kernels& kernels, const Problem& problem, bool measures, Result& result) {
  const Shape& shape = problem.shape;
  Guarded packed(kernels.packed_bytes(shape.in, shape.out, shape.kernel));
  kernels.pack_weight(problem.weight.data(), shape.in, shape.out, shape.kernel,
                      packed.data<void>());
  for (int32_t y = 0; y < shape.out_height(); ++y) {
    const void* rows[3];
    for (int32_t dy = 0; dy < shape.kernel; ++dy) {
      const int32_t source = y * shape.stride + dy - shape.kernel / 2;
      rows[dy] = source < 0 || source >= shape.height
                     ? nullptr
                     : problem.in.rows[static_cast<size_t>(source)]->data<void>();
    }
    kernels.convolve({rows, packed.data<void>(),
                      result.out.rows[static_cast<size_t>(y)]->data<void>(),
                      measures ? &result.moments : nullptr, shape.width, shape.out_width(),
                      shape.in, shape.out, shape.kernel, shape.stride, y == 0});
    if (measures && y % 4 == 3) kernels.flush(result.moments, shape.out);
  }
  if (measures) kernels.flush(result.moments, shape.out);
  if (!packed.is_intact()) fail(shape, "packed weight", "written outside");
}
