// Stand-in for tensorrt_llm/executor/tensor.h: tensors of shared ownership, in host memory only.
#pragma once

#include "tensorrt_llm/executor/types.h"

#include <initializer_list>
#include <type_traits>

namespace tensorrt_llm::runtime
{
class ITensor;
} // namespace tensorrt_llm::runtime

namespace tensorrt_llm::executor
{
// Dimensions that somebody else owns. Do not keep one that was made from a list.
class Shape
{
public:
    using DimType64 = std::int64_t;

    Shape() = default;
    Shape(DimType64 const* data, std::size_t size)
        : mData(data)
        , mSize(size)
    {
    }
    Shape(std::initializer_list<DimType64> dims)
        : mSize(dims.size())
    {
        mData = dims.begin();
    }

    [[nodiscard]] std::size_t size() const { return mSize; }
    [[nodiscard]] DimType64 const* begin() const { return mData; }
    [[nodiscard]] DimType64 const* end() const { return mData + mSize; }
    DimType64 const& operator[](std::size_t i) const { return mData[i]; }

private:
    DimType64 const* mData = nullptr;
    std::size_t mSize = 0;
};

template <typename T>
struct TypeTraits
{
};
template <>
struct TypeTraits<float>
{
    static constexpr auto value = DataType::kFP32;
};
template <>
struct TypeTraits<std::int32_t>
{
    static constexpr auto value = DataType::kINT32;
};
template <>
struct TypeTraits<std::uint8_t>
{
    static constexpr auto value = DataType::kUINT8;
};

class Tensor
{
public:
    using CudaStreamPtr = std::shared_ptr<runtime::CudaStream>;

    static Tensor cpu(DataType dataType, Shape shape = {});
    static Tensor pinned(DataType dataType, Shape shape = {});
    static Tensor gpu(DataType dataType, CudaStreamPtr stream, Shape shape = {});
    static Tensor of(DataType dataType, void* data, Shape shape);

    template <typename T>
    static Tensor cpu(Shape shape = {})
    {
        return cpu(TypeTraits<std::remove_cv_t<T>>::value, shape);
    }
    template <typename T>
    static Tensor of(T* data, Shape shape)
    {
        return of(TypeTraits<std::remove_cv_t<T>>::value, static_cast<void*>(data), shape);
    }

    Tensor() noexcept = default;

    [[nodiscard]] Tensor copyToCpu(CudaStreamPtr stream = nullptr) const;
    [[nodiscard]] Tensor copyToPooledPinned(CudaStreamPtr stream = nullptr) const;
    [[nodiscard]] void* getData();
    [[nodiscard]] void const* getData() const;
    [[nodiscard]] DataType getDataType() const;
    [[nodiscard]] MemoryType getMemoryType() const;
    [[nodiscard]] Shape getShape() const;
    [[nodiscard]] std::size_t getSize() const;
    [[nodiscard]] std::size_t getSizeInBytes() const;
    void setZero(CudaStreamPtr stream = nullptr);
    void setFrom(Tensor const& other, CudaStreamPtr stream = nullptr);

    explicit operator bool() const { return static_cast<bool>(mTensor); }
    bool operator==(Tensor const& rhs) const { return mTensor == rhs.mTensor; }
    bool operator!=(Tensor const& rhs) const { return !(rhs == *this); }

private:
    explicit Tensor(std::shared_ptr<runtime::ITensor> tensor);
    std::shared_ptr<runtime::ITensor> mTensor;
};

struct DebugTensorsPerIteration
{
    IterationType iter;
    std::map<std::string, Tensor> debugTensors;
};
} // namespace tensorrt_llm::executor
