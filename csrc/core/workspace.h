// Scratch memory that csrc/ops hands to kernels: uninitialised, aligned to a cache line.
//
// Each thread keeps the blocks that it gives back for its next calls, a few and of bounded size:
// fresh memory comes page by page from the system, which for a small convolution takes longer than
// to compute it. A forked child has its own copy of what its thread kept.
#pragma once

#include <cstdint>

namespace nnops {

class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return capacity_; }  // at least those asked for

 private:
  void* data_;
  int64_t capacity_;
};

// What the calling thread keeps now, and the most that it ever keeps.
int64_t kept_workspace_bytes();
inline constexpr int64_t kMostKeptWorkspaceBytes = int64_t{32} << 20;

}  // namespace nnops
