// Scratch memory that csrc/ops hands to kernels: uninitialised, aligned to a cache line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace nnops {

inline constexpr std::align_val_t kWorkspaceAlignment{64};

class Workspace {
 public:
  explicit Workspace(int64_t bytes)
      : data_(bytes > 0 ? ::operator new(static_cast<size_t>(bytes), kWorkspaceAlignment)
                        : nullptr) {}
  ~Workspace() { ::operator delete(data_, kWorkspaceAlignment); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  void* data_;
};

}  // namespace nnops
