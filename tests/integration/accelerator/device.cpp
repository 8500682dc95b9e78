// A device whose memory is the CPU's and whose kernels are the CPU's, but whose tensors are not the CPU's: it refuses
// to mix the two exactly where an accelerator does.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <unordered_map>

namespace {

constexpr auto kPretend = c10::DeviceType::PrivateUse1;

void free_block(void* block) { free(block); }

struct PretendAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* block = nullptr;
    if (n && posix_memalign(&block, 64, n)) TORCH_CHECK(false, "out of memory");
    return {block, block, &free_block, c10::Device(kPretend, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, size_t n) const override { memcpy(to, from, n); }
};
PretendAllocator allocator;
REGISTER_ALLOCATOR(kPretend, &allocator);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kPretend> {
  c10::Device exchangeDevice(c10::Device) const override { return {kPretend, 0}; }
  c10::Device getDevice() const override { return {kPretend, 0}; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, c10::Device(kPretend, 0)); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, c10::Device(kPretend, 0)); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, c10::Device(kPretend, 0)); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    c10::DataPtr grown = allocator.allocate(size);
    if (storage.nbytes()) memcpy(grown.get(), storage.data(), std::min(size, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(grown));
    storage.unsafeGetStorageImpl()->set_nbytes(size);
  }
};

const c10::DispatchKeySet keys() { return c10::DispatchKeySet(c10::DispatchKey::PrivateUse1); }

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, keys(), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, keys(), c10::dtype_or_default(dtype));
}

// The same memory under a CPU tensor's name.
class Aliases {
 public:
  at::Tensor of(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != kPretend) return tensor;
    for (auto& [theirs, ours] : pairs_)
      if (theirs.is_same(tensor)) return ours;
    const auto& storage = tensor.storage();
    auto* key = storage.unsafeGetStorageImpl();
    if (!storages_.count(key)) {
      c10::DataPtr data(const_cast<void*>(storage.data()), c10::Device(c10::kCPU));
      storages_.emplace(key, std::make_pair(storage, c10::Storage(c10::make_intrusive<c10::StorageImpl>(
          c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetCPUAllocator(), true))));
    }
    auto alias = at::detail::make_tensor<c10::TensorImpl>(
        c10::Storage(storages_.at(key).second), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    auto* impl = alias.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    if (tensor.is_conj()) alias._set_conj(true);
    if (tensor.is_neg()) alias._set_neg(true);
    pairs_.emplace_back(tensor, alias);
    return alias;
  }

  // What the CPU's kernel has done to sizes and memory of its arguments.
  void settle() {
    for (auto& [key, both] : storages_) {
      auto& [theirs, ours] = both;
      if (ours.data() != theirs.data() || ours.nbytes() != theirs.nbytes()) {
        c10::DataPtr grown = allocator.allocate(ours.nbytes());
        if (ours.nbytes()) memcpy(grown.get(), ours.data(), ours.nbytes());
        theirs.set_data_ptr_noswap(std::move(grown));
        theirs.unsafeGetStorageImpl()->set_nbytes(ours.nbytes());
      }
    }
    for (auto& [theirs, ours] : pairs_) {
      if (theirs.sizes() != ours.sizes() || theirs.strides() != ours.strides() ||
          theirs.storage_offset() != ours.storage_offset())
        theirs.unsafeGetTensorImpl()->set_sizes_and_strides(ours.sizes(), ours.strides(), ours.storage_offset());
    }
  }

  // A result under the device's name: an argument itself, a view of one, or memory of its own.
  at::Tensor back(const at::Tensor& result) {
    if (!result.defined() || result.device().type() != c10::kCPU) return result;
    for (auto& [theirs, ours] : pairs_)
      if (ours.is_same(result)) return theirs;
    for (auto& [key, both] : storages_) {
      if (both.second.unsafeGetStorageImpl() != result.storage().unsafeGetStorageImpl()) continue;
      for (auto& [theirs, ours] : pairs_)
        if (theirs.storage().unsafeGetStorageImpl() == key) return view(theirs, result);
    }
    at::Tensor own = at::detail::empty_strided_generic(result.sizes(), result.strides(), &allocator, keys(), result.scalar_type());
    if (result.numel()) {
      Aliases fresh;
      at::AutoDispatchBelowADInplaceOrView below;
      fresh.of(own).copy_(result);
    }
    return own;
  }

  size_t count() const { return pairs_.size(); }

 private:
  static at::Tensor view(const at::Tensor& base, const at::Tensor& like) {
    auto made = at::detail::make_tensor<c10::TensorImpl>(
        c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(), like.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
    return made;
  }
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;
  std::unordered_map<c10::StorageImpl*, std::pair<c10::Storage, c10::Storage>> storages_;
};

bool mixes(const std::string& name) {
  // Indices may lie on the CPU.
  for (const char* start : {"aten::index.", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index"})
    if (name.rfind(start, 0) == 0) return true;
  return false;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto num = schema.arguments().size();
  const auto begin = stack->size() - num;
  const auto name = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  Aliases aliases;
  bool foreign = false;
  auto take = [&](const at::Tensor& t) {
    if (t.defined() && t.device().is_cpu() && t.dim() > 0) foreign = true;
    return aliases.of(t);
  };
  for (size_t i = begin; i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (value.isTensor()) value = take(value.toTensor());
    else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : value.toTensorVector()) list.push_back(take(t));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& t : value.toOptionalTensorList()) {
        std::optional<at::Tensor> one = t;
        list.push_back(one.has_value() ? std::optional<at::Tensor>(take(*one)) : std::nullopt);
      }
      value = list;
    } else if (value.isDevice() && value.toDevice().type() == kPretend) value = c10::Device(c10::kCPU);
  }
  TORCH_CHECK(!(foreign && aliases.count() && !mixes(name)),
              "Expected all tensors to be on the same device, but ", name, " got some of the accelerator and some of the CPU");
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.callBoxed(stack);
  }
  aliases.settle();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (value.isTensor()) value = aliases.back(value.toTensor());
    else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : value.toTensorVector()) list.push_back(aliases.back(t));
      value = list;
    }
  }
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  Aliases aliases;
  at::AutoDispatchBelowADInplaceOrView below;
  aliases.of(to).copy_(aliases.of(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  Aliases aliases;
  at::AutoDispatchBelowADInplaceOrView below;
  auto alias = aliases.of(to);
  alias.resize_(from.sizes());
  alias.copy_(aliases.of(from));
  aliases.settle();
  return to;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  std::vector<int64_t> strides(stride.begin(), stride.end());
  if (strides.empty() && !size.empty()) {
    strides.assign(size.size(), 1);
    for (int64_t i = static_cast<int64_t>(size.size()) - 2; i >= 0; i--) strides[i] = strides[i + 1] * std::max<int64_t>(size[i + 1], 1);
  }
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, strides, offset);
  return self;
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

at::Tensor& set_whole(at::Tensor& self, at::Storage storage) {
  const auto num = static_cast<int64_t>(storage.nbytes() / self.itemsize());
  return set_storage(self, std::move(storage), 0, {num}, {1});
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("set_.source_Storage", &set_whole);
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define WIDER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define PROMOTED(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(WIDER)
  AT_FORALL_PROMOTE(PROMOTED)
}

struct Registered {
  Registered() { at::RegisterPrivateUse1HooksInterface(new Hooks()); }
} registered;

}  // namespace
