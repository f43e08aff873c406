// SPDX-License-Identifier: Apache-2.0
// The template with memory of its own, as a device has it, so that uploads and downloads are tested on every machine.
// New memory holds nonsense, a step with a pointer from elsewhere is refused, and so is a deallocation. Options:
//   memory=KIB   as much as it has
//   late=1       a step is done in synchronize(), as a device may do it
//   fault=...    what attest bench must see:
//     output       adds 1 to an output
//     stale        from the third step on nothing but lengths
//     synchronize  fails; refuse: is UNSUPPORTED
//     crowd        with late=1: of several steps that wait in synchronize() only the last is done
//     lazy_crowd   with late=1: if several steps wait in synchronize() they are done in the next upload or download
//     lazy         with late=1: a step is done in the upload or download after its synchronize
//     none_left    allocate always fails
//     upload, download       fail from the 100th on
//     copy                   the ceiling's leaves out half
//     product, transposed, coarse, tired, no_product   the ceiling's: one number is wrong, all are transposed, factors
//                            have 10 bits as in TF32, it fails from the 10th on, it is UNSUPPORTED
//     vast                   the last cache is as large as a number can be
#include <attest/backend.hpp>

#undef ATTEST_REGISTER_BACKEND
#define ATTEST_REGISTER_BACKEND(Class)
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "../template/template.cpp"

namespace {

class Detached : public Template {
 public:
  static constexpr const char* name = "detached";
  static constexpr const char* version = "1.0";
  static constexpr const char* declarations = "{}";
  static std::string description() { return "the template, with memory of its own"; }

  explicit Detached(Options& options)
      : Template(options),
        left_(size_t{1024} * static_cast<size_t>(options.take_count("memory", 999'999))),
        late_(options.take_count("late", 2) == 1),
        fault_(options.take("fault", "none")) {
    static const std::set<std::string> known{
        "none", "output",  "stale", "synchronize", "refuse",     "lazy",       "none_left", "upload",     "download",
        "copy", "product", "tired", "crowd",       "lazy_crowd", "no_product", "vast",      "transposed", "coarse"};
    if (known.count(fault_) == 0) throw Invalid("option fault: got \"" + fault_ + "\"");
  }
  ~Detached() {
    if (!buffers_.empty()) std::abort();  // the caller has to give everything back before it closes
  }

  void* allocate(size_t bytes) {
    if (bytes > left_ || fault_ == "none_left") throw std::bad_alloc();
    auto buffer = std::make_unique<Buffer>(bytes);
    left_ -= bytes;
    char* memory = buffer->bytes.get();
    std::memset(memory, 0xcd, bytes);
    buffers_.emplace(memory, std::move(buffer));
    return memory;
  }
  void deallocate(void* memory) noexcept {
    const auto found = buffers_.find(static_cast<char*>(memory));
    if (found == buffers_.end()) std::abort();
    left_ += found->second->size;
    buffers_.erase(found);
  }
  void upload(void* device, const void* host, size_t bytes) {
    check(device, bytes);
    count("upload", uploads_);
    if (fault_ == "lazy" || fault_ == "lazy_crowd") work_off();
    std::memcpy(device, host, bytes);
  }
  void download(void* host, const void* device, size_t bytes) {
    check(device, bytes);
    count("download", downloads_);
    if (fault_ == "lazy" || fault_ == "lazy_crowd") work_off();
    std::memcpy(host, device, bytes);
  }
  void synchronize() {
    if (fault_ != "lazy" && (fault_ != "lazy_crowd" || work_.size() == 1)) work_off();
    if (fault_ == "refuse") throw Unsupported("not today");
    if (fault_ == "synchronize") throw std::runtime_error("the device has fallen off the bus");
  }

  // attest/ceilings.h
  [[nodiscard]] int64_t last_cache() const { return fault_ == "vast" ? std::numeric_limits<int64_t>::max() : 4096; }
  void copy(void* to, const void* from, size_t bytes) const {
    check(to, bytes);
    check(from, bytes);
    std::memcpy(to, from, fault_ == "copy" ? bytes / 2 : bytes);
  }
  void multiply(DLDataType dtype, int64_t n, const void* a, const void* b, void* c) {
    const Storage storage = storage_of(dtype);
    const auto size = static_cast<int64_t>(bytes_of(storage));
    for (const void* matrix : {a, b, static_cast<const void*>(c)}) check(matrix, static_cast<size_t>(n * n * size));
    if (fault_ == "no_product") throw Unsupported("no product here");
    if (fault_ == "tired" && ++products_ >= 10) throw std::runtime_error("the device has fallen off the bus");
    const auto number = [&](const void* matrix, int64_t row, int64_t column) {
      const float value = load(storage, static_cast<const char*>(matrix) + (row * n + column) * size);
      if (fault_ != "coarse") return value;
      std::uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      bits &= 0xFFFFE000U;
      float cut;
      std::memcpy(&cut, &bits, sizeof cut);
      return cut;
    };
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        float sum = fault_ == "product" && i + 1 == n ? 1.0F : 0.0F;
        for (int64_t k = 0; k < n; ++k) sum += number(a, i, k) * number(b, j, k);
        const int64_t place = fault_ == "transposed" ? j * n + i : i * n + j;
        store(storage, sum, static_cast<char*>(c) + place * size);
      }
    }
  }

  class Plan {
   public:
    Plan(Detached& detached, const attest_problem& problem) : detached_(detached), plan_(detached, problem) {}
    ~Plan() { detached_.work_.clear(); }
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;
    void run(const attest_step& step) {
      for (const DLTensor* tensor : {step.query, step.key, step.value, static_cast<const DLTensor*>(step.output)}) {
        if (tensor != nullptr) detached_.check(tensor->data, 1);
      }
      if (!detached_.late_) return work(step);
      // The step itself is gone when it is done; its tensors are not.
      const attest_cache cache = step.cache != nullptr ? *step.cache : attest_cache{};
      detached_.work_.emplace_back([this, later = step, cache]() mutable {
        if (later.cache != nullptr) later.cache = &cache;
        work(later);
      });
    }

   private:
    void work(const attest_step& step) {
      if (detached_.fault_ == "stale" && ++steps_ > 2) {
        const View<int32_t, 1> lengths(*step.cache->lengths);
        const View<int32_t, 1> fresh(*step.key_lengths);
        for (int64_t b = 0; b < lengths.shape(0); ++b) lengths(b) += fresh(b);
        return;
      }
      plan_.run(step);
      if (detached_.fault_ == "output") *static_cast<float*>(step.output->data) += 1;
    }

    Detached& detached_;
    Template::Plan plan_;
    int steps_ = 0;
  };

 private:
  void work_off() {
    auto work = std::exchange(work_, {});
    if (fault_ == "crowd" && work.size() > 1) work.erase(work.begin(), work.end() - 1);
    for (const auto& one : work) one();
  }

  struct Buffer {
    explicit Buffer(size_t count) : size(count), bytes(new (std::align_val_t{256}) char[count]) {}
    struct Free {
      void operator()(char* memory) const { ::operator delete[](memory, std::align_val_t{256}); }
    };
    size_t size;
    std::unique_ptr<char[], Free> bytes;
  };

  void check(const void* memory, size_t bytes) const {
    const auto* const at = static_cast<const char*>(memory);
    auto after = buffers_.upper_bound(const_cast<char*>(at));
    if (after == buffers_.begin() || at + bytes > std::prev(after)->first + std::prev(after)->second->size) {
      throw Invalid("memory: got a pointer that was not allocated here");
    }
  }

  void count(const char* what, int& calls) const {
    if (fault_ == what && ++calls >= 100) throw std::runtime_error("the device has fallen off the bus");
  }

  size_t left_;
  bool late_;
  std::string fault_;
  int uploads_ = 0, downloads_ = 0, products_ = 0;
  std::vector<std::function<void()>> work_;
  std::map<char*, std::unique_ptr<Buffer>> buffers_;
};

}  // namespace

ATTEST_EXPORT const attest_backend* attest_get_backend(void) {
  return table_of<Detached>();
}
#if !defined(DETACHED_WITHOUT_CEILINGS)
ATTEST_REGISTER_CEILINGS(Detached)
#endif
