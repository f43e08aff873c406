// SPDX-License-Identifier: Apache-2.0
// The template with memory of its own, as a device has it, so that uploads and downloads are tested on every machine.
// New memory holds nonsense, a step with a pointer from elsewhere is refused, and so is a deallocation.
#include <attest/backend.hpp>

#undef ATTEST_REGISTER_BACKEND
#define ATTEST_REGISTER_BACKEND(Class)
#include <cstdio>
#include <cstdlib>
#include <map>

#include "../template/template.cpp"

namespace {

class Detached : public Template {
 public:
  static constexpr const char* name = "detached";
  static constexpr const char* version = "1.0";
  static constexpr const char* declarations = "{}";
  static std::string description() { return "the template, with memory of its own"; }

  explicit Detached(Options& options) : Template(options) {}
  ~Detached() {
    if (!buffers_.empty()) std::abort();  // the caller has to give everything back before it closes
  }

  void* allocate(size_t bytes) {
    auto buffer = std::make_unique<Buffer>(bytes);
    char* memory = buffer->bytes.get();
    std::memset(memory, 0xcd, bytes);
    buffers_.emplace(memory, std::move(buffer));
    return memory;
  }
  void deallocate(void* memory) noexcept {
    if (buffers_.erase(static_cast<char*>(memory)) != 1) std::abort();
  }
  void upload(void* device, const void* host, size_t bytes) {
    check(device, bytes);
    std::memcpy(device, host, bytes);
  }
  void download(void* host, const void* device, size_t bytes) {
    check(device, bytes);
    std::memcpy(host, device, bytes);
  }
  void synchronize() {}

  class Plan {
   public:
    Plan(Detached& detached, const attest_problem& problem) : detached_(detached), plan_(detached, problem) {}
    void run(const attest_step& step) {
      for (const DLTensor* tensor : {step.query, step.key, step.value, static_cast<const DLTensor*>(step.output)}) {
        if (tensor != nullptr) detached_.check(tensor->data, 1);
      }
      plan_.run(step);
    }

   private:
    Detached& detached_;
    Template::Plan plan_;
  };

 private:
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

  std::map<char*, std::unique_ptr<Buffer>> buffers_;
};

}  // namespace

ATTEST_EXPORT const attest_backend* attest_get_backend(void) {
  return table_of<Detached>();
}
