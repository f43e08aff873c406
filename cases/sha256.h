// SPDX-License-Identifier: Apache-2.0
// SHA-256 of bytes, as 64 hex digits: what ties a golden to its case, its inputs and its file.
#pragma once

#include <memory>
#include <string>
#include <string_view>

struct evp_md_ctx_st;

namespace attest {

class Sha256 {
 public:
  Sha256();
  void add(std::string_view bytes);
  /// The digest of all that was added; call once.
  std::string hex();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

std::string sha256(std::string_view bytes);

}  // namespace attest
